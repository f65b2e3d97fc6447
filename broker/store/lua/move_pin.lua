-- move_pin: binds a session to another credential, if its pin is still the one the caller saw.
--
-- KEYS[1] session hash   KEYS[2] turns hash   KEYS[3] ids hash
-- ARGV[1] TTL, ms        ARGV[2] name         ARGV[3] tenant
-- ARGV[4] expected epoch ('0': no pin)        ARGV[5] expected nonce
-- ARGV[6] new nonce      ARGV[7] credential   ARGV[8] because
--
-- Answers {'moved' | 'stale', epoch, nonce, credential, because, incremental_disabled '1' | '0'}: the pin as it is stored
-- now, its four fields empty where there is none. A stale call changes nothing. A repeated call (its answer was lost)
-- is answered 'moved' again.

local stored = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'credential', 'because', 'incremental_disabled')
local epoch = tonumber(stored[1] or '0')
local expected = tonumber(ARGV[4])
local disabled = stored[5] or '0'

if epoch == expected + 1 and stored[2] == ARGV[6] and stored[3] == ARGV[7] then
  return {'moved', stored[1], stored[2], stored[3], stored[4], disabled}
end

-- the nonce counts as much as the epoch: two sides of a partition hand out the same epochs
if epoch ~= expected or (epoch > 0 and stored[2] ~= ARGV[5]) then
  return {'stale', stored[1] or '', stored[2] or '', stored[3] or '', stored[4] or '', disabled}
end

local moved = tostring(epoch + 1)
redis.call('HSET', KEYS[1], 'name', ARGV[2], 'tenant', ARGV[3],
  'epoch', moved, 'nonce', ARGV[6], 'credential', ARGV[7], 'because', ARGV[8])
if epoch > 0 then
  disabled = '1'
  redis.call('HSET', KEYS[1], 'incremental_disabled', '1', 'disabled_since', redis.call('TIME')[1])
  redis.call('HINCRBY', KEYS[1], 'resets', 1)
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[1])
end
return {'moved', moved, ARGV[6], ARGV[7], ARGV[8], disabled}
