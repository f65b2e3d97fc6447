-- owe: remembers one event that a webhook is to be told, until it was told or given up.
--
-- KEYS[1] when the webhook is owed what   KEYS[2] the events it is owed   KEYS[3] whether it was told this one
-- ARGV[1] id of the event   ARGV[2] the event   ARGV[3] how many it may be owed   ARGV[4] seconds until all is forgotten
--
-- Answers 'owed', 'known' if it was owed or told before, 'full' if there is no room.

if redis.call('GET', KEYS[3]) == 'done' or redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 'known'
end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
  return 'full'
end
redis.call('ZADD', KEYS[1], 0, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 'owed'
