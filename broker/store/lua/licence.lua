-- licence: one at a time, in the whole cluster, may try a credential whose block has run out.
--
-- KEYS[1] rows hash   KEYS[2] the licence of one subject
-- ARGV[1] 'take' | 'keep' | 'drop'   ARGV[2] subject   ARGV[3] version of the row as the asker saw it (for 'take')
-- ARGV[4] token of the asker         ARGV[5] milliseconds it is held for
--
-- Answers '1' if the asker holds it now ('drop': held it), else '0'. Taken only for the row as it is: who saw an older
-- one asks for an answer that is there already.

local act, token = ARGV[1], ARGV[4]
local holder = redis.call('GET', KEYS[2])

if act == 'take' then
  local readable, row = pcall(cjson.decode, redis.call('HGET', KEYS[1], ARGV[2]) or '')
  if holder or not readable or type(row) ~= 'table' or row.version ~= tonumber(ARGV[3]) then
    return '0'
  end
  redis.call('SET', KEYS[2], token, 'PX', ARGV[5])
  return '1'
end

if holder ~= token then
  return '0'
end
if act == 'keep' then
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
else
  redis.call('DEL', KEYS[2])
end
return '1'
