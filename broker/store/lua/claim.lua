-- claim: how many turns a node may run at once on a credential whose cap holds for all nodes together.
--
-- KEYS[1] hash: node -> 'slots:end of the claim in milliseconds of this server's clock'
-- ARGV[1] node   ARGV[2] slots wanted, all in all   ARGV[3] of these, in use   ARGV[4] cap of the credential
-- ARGV[5] milliseconds a claim lasts
--
-- Answers {slots held by this node, slots held by all}. What is in use is held in any case: a claim that had ended does
-- not end turns, and nobody shall count on their slots.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local node, wanted, used = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local cap, lasting = tonumber(ARGV[4]), tonumber(ARGV[5])

local others = 0
local claims = redis.call('HGETALL', KEYS[1])
for i = 1, #claims, 2 do
  local slots, ends = string.match(claims[i + 1], '^(%d+):(%d+)$')
  if tonumber(ends) <= now then
    redis.call('HDEL', KEYS[1], claims[i])
  elseif claims[i] ~= node then
    others = others + tonumber(slots)
  end
end

local held = math.max(math.min(wanted, cap - others), used)
if held > 0 then
  redis.call('HSET', KEYS[1], node, string.format('%d:%d', held, now + lasting))
  redis.call('PEXPIRE', KEYS[1], lasting * 2)
else
  redis.call('HDEL', KEYS[1], node)
end
return {held, others + held}
