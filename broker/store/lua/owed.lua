-- owed: what a webhook is owed and nobody is telling it just now, the oldest first.
--
-- KEYS[1] when the webhook is owed what
-- ARGV[1] how many at most
--
-- Answers ids.

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
