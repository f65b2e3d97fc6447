-- reclaim_events: takes over what a recorder was given and has not acknowledged, and forgets recorders that are gone.
--
-- KEYS[1] events stream   KEYS[2] recorder hash
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] milliseconds for which an entry was left lying
-- ARGV[4] how many entries at most   ARGV[5] milliseconds after which a silent consumer that has nothing is forgotten
-- ARGV[6] seconds the hash lives
--
-- Answers {how many were trimmed before they were acknowledged, entries}; the lost ones are counted in `missed` of the
-- hash.

local got = redis.pcall('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], '0-0', 'COUNT', ARGV[4])
if type(got) == 'table' and got.err then
  -- no group: nobody was given anything
  return {0, {}}
end
local lost = got[3] and #got[3] or 0
if lost > 0 then
  redis.call('HINCRBY', KEYS[2], 'missed', lost)
  redis.call('EXPIRE', KEYS[2], ARGV[6])
end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #flat, 2 do
    consumer[flat[i]] = flat[i + 1]
  end
  local silent = tonumber(consumer.idle) > tonumber(ARGV[5])
  if consumer.name ~= ARGV[2] and tonumber(consumer.pending) == 0 and silent then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
return {lost, got[2]}
