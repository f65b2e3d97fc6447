-- remove_stale: forgets the nodes that have not beaten for a while.
--
-- KEYS[1] nodes hash
-- ARGV[1] seconds of silence after which a node is gone
--
-- Answers the nodes that it removed.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local beats, removed = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #beats, 2 do
  if now - cjson.decode(beats[i + 1]).at > tonumber(ARGV[1]) then
    redis.call('HDEL', KEYS[1], beats[i])
    removed[#removed + 1] = beats[i]
  end
end
return removed
