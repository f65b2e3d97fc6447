-- trim_events: forgets what happened to the health rows long ago.
--
-- KEYS[1] events stream
-- ARGV[1] seconds after which an event is old
--
-- Answers how many it removed. Ids of events begin with the milliseconds of this server's clock.

local time = redis.call('TIME')
local oldest = math.max(0, math.floor((tonumber(time[1]) - tonumber(ARGV[1])) * 1000))
return redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', oldest))
