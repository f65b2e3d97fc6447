-- forget_row: removes a health row, if it is still the one that was looked at.
--
-- KEYS[1] rows hash
-- ARGV[1] subject   ARGV[2] the row as it was read, byte for byte
--
-- Answers '1' if it was removed, '0' if the row is another one by now.

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return '0'
end
redis.call('HDEL', KEYS[1], ARGV[1])
return '1'
