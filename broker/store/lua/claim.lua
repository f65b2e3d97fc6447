-- claim: how many turns a node may run at once on a credential whose cap holds for all nodes together.
--
-- KEYS[1] hash: node -> 'slots:end of the claim in milliseconds of this server's clock:slots wanted'
-- ARGV[1] node   ARGV[2] slots to hold, all in all   ARGV[3] of these, in use   ARGV[4] cap of the credential
-- ARGV[5] milliseconds a claim lasts   ARGV[6] slots the node has use for
--
-- Answers {slots held by this node, slots held by all, most that this node may have}. What is in use is held in any case: a claim that had ended does not end turns, and nobody shall count on their slots. Where all
-- together want more than there is, each may have an even part, and what others leave of theirs.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local node, wanted, used = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local cap, lasting, wants = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

local others, contenders, wishes = 0, 1, {}
local claims = redis.call('HGETALL', KEYS[1])
for i = 1, #claims, 2 do
  local slots, ends, wish = string.match(claims[i + 1], '^(%d+):(%d+):(%d+)$')
  if not ends or tonumber(ends) <= now then
    redis.call('HDEL', KEYS[1], claims[i])
  elseif claims[i] ~= node then
    others = others + tonumber(slots)
    if tonumber(wish) > 0 then
      contenders = contenders + 1
      table.insert(wishes, tonumber(wish))
    end
  end
end

local part = math.max(math.floor(cap / contenders), 1)
local taken = 0
for _, wish in ipairs(wishes) do
  taken = taken + math.min(wish, part)
end
local most = math.max(part, cap - taken)

local held = math.max(math.min(wanted, cap - others, most), used, 0)
if held > 0 or wants > 0 then
  redis.call('HSET', KEYS[1], node, string.format('%d:%d:%d', held, now + lasting, wants))
  redis.call('PEXPIRE', KEYS[1], lasting * 2)
else
  redis.call('HDEL', KEYS[1], node)
end
return {held, others + held, most}
