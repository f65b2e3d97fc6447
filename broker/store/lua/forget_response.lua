-- forget_response: removes the index entry of a response, if it still leads where it led.
--
-- KEYS[1] the index entry
-- ARGV[1] sid of the session that was found to be gone
--
-- Answers '1' if it was removed, '0' if it leads elsewhere by now, or is gone.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return '0'
end
redis.call('DEL', KEYS[1])
return '1'
