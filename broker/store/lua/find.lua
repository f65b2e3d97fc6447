-- find: the newest turn that answered under a response id.
--
-- KEYS[1] turns hash   KEYS[2] ids hash
-- ARGV[1] response id
--
-- Answers {turn id, meta}, or {} where the session does not know the id.

local turn = redis.call('HGET', KEYS[2], 'r:' .. ARGV[1])
if not turn then
  return {}
end
local meta = redis.call('HGET', KEYS[1], turn)
if not meta then
  return {}
end
return {turn, meta}
