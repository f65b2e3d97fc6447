-- end_telling: a webhook was told one thing, or will not be; or another worker shall tell it.
--
-- KEYS[1] when the webhook is owed what   KEYS[2] the events it is owed   KEYS[3] whether it was told this one
-- KEYS[4] pace hash of the webhook
-- ARGV[1] 'done' | 'drop'   ARGV[2] id of the event, or of a summary   ARGV[3] token of the asker
-- ARGV[4] seconds that what is done is known
--
-- Answers '1', or '0' for a 'drop' of a claim that is no longer the asker's. What was told is done whoever holds the claim.

local id = ARGV[2]
if ARGV[1] == 'done' then
  redis.call('SET', KEYS[3], 'done', 'EX', ARGV[4])
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
  if string.sub(id, 1, 5) == 'more-' then
    redis.call('HDEL', KEYS[4], id)
  end
  return '1'
end
if redis.call('GET', KEYS[3]) ~= ARGV[3] then
  return '0'
end
redis.call('DEL', KEYS[3])
if redis.call('ZSCORE', KEYS[1], id) then
  redis.call('ZADD', KEYS[1], 0, id)
end
return '1'
