-- close_session: a client closed, in good order, a session that nobody can name any more.
--
-- KEYS[1] session hash   KEYS[2] turns hash   KEYS[3] ids hash
-- ARGV (none)
--
-- Answers 'deleted' where no turn of it was store=true, 'closed' where one was: its stored responses stay reachable.

if redis.call('HGET', KEYS[1], 'stored') == '1' then
  redis.call('HSET', KEYS[1], 'closed', '1')
  return 'closed'
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return 'deleted'
