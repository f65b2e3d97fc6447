-- beat: a node says that it is there, and how busy.
--
-- KEYS[1] nodes hash
-- ARGV[1] node   ARGV[2] load, a JSON object
--
-- Answers the time of this server under which the beat stands.

local time = redis.call('TIME')
local at = string.format('%d.%06d', tonumber(time[1]), tonumber(time[2]))
redis.call('HSET', KEYS[1], ARGV[1], '{"at":' .. at .. ',"load":' .. ARGV[2] .. '}')
return at
