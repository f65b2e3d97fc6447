-- chain: the metas from one turn back towards its root, one page of them.
--
-- KEYS[1] turns hash
-- ARGV[1] turn id to begin with   ARGV[2] most turns to answer (a long walk would hold up everybody else)
--
-- Answers {turn id, meta, turn id, meta, ...}, newest first. It ends at the root, at a full page, before a turn that is
-- already in it, or with a missing turn, whose meta is ''.

local found, seen = {}, {}
local turn, left = ARGV[1], tonumber(ARGV[2])
while turn and left > 0 and not seen[turn] do
  local meta = redis.call('HGET', KEYS[1], turn)
  seen[turn] = true
  left = left - 1
  found[#found + 1] = turn
  found[#found + 1] = meta or ''
  turn = meta and cjson.decode(meta).parent
end
return found
