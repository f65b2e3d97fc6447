-- lease: one holder at a time of a name, for a while.
--
-- KEYS[1] the lease
-- ARGV[1] 'take' | 'keep' | 'drop'   ARGV[2] token of the asker   ARGV[3] milliseconds it is held for (not for 'drop')
--
-- Answers '1' if the asker holds it now ('drop': held it), else '0'. A late holder changes nothing: what has run out, or
-- is another's, is only to be taken anew. Taking what one holds keeps it, so that a lost answer may be asked for again.

local act, token = ARGV[1], ARGV[2]
local holder = redis.call('GET', KEYS[1])

if act == 'take' and not holder then
  redis.call('SET', KEYS[1], token, 'PX', ARGV[3])
  return '1'
end
if holder ~= token then
  return '0'
end
if act == 'drop' then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return '1'
