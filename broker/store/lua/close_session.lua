-- close_session: a client closed, in good order, a session that nobody can name any more.
--
-- KEYS[1] session hash   KEYS[2] turns hash   KEYS[3] ids hash
-- ARGV[1] the turn that must still be its last ('': whichever it is)
--
-- Answers 'alive' where another socket has gone on with it: nothing was changed. 'deleted' where no turn of it was store=true, 'closed' where one was: its stored responses stay reachable.

if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 'last_turn') ~= ARGV[1] then
  return 'alive'
end
if redis.call('HGET', KEYS[1], 'stored') == '1' then
  redis.call('HSET', KEYS[1], 'closed', '1')
  return 'closed'
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return 'deleted'
