-- beat: a node says that it is there, and how busy.
--
-- KEYS[1] nodes hash
-- ARGV[1] node   ARGV[2] load, a JSON object   ARGV[3] role, a JSON string
--
-- Answers the time of this server under which the beat stands.

local time = redis.call('TIME')
local at = string.format('%d.%06d', tonumber(time[1]), tonumber(time[2]))
local beat = '{"at":' .. at .. ',"role":' .. ARGV[3] .. ',"load":' .. ARGV[2] .. '}'
redis.call('HSET', KEYS[1], ARGV[1], beat)
return at
