-- record_event: puts one event into the timeline of its subject and counts it, once.
--
-- KEYS[1] timeline of the subject   KEYS[2] counts hash
-- ARGV[1] the event   ARGV[2] its place, a whole number that is its own and rises with its id
-- ARGV[3] how many events a timeline keeps   ARGV[4] seconds it lives
-- ARGV[5] field of the counts   ARGV[6] field for what has no room there   ARGV[7] how many fields there may be
-- ARGV[8] seconds the counts live
--
-- Answers '1' if it was recorded, '0' if it had been before. What is older than all of a full timeline counts as recorded.

local keep = tonumber(ARGV[3])
if redis.call('ZCARD', KEYS[1]) >= keep then
  local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  if tonumber(ARGV[2]) < tonumber(oldest[2]) then
    return '0'
  end
end
if redis.call('ZCOUNT', KEYS[1], ARGV[2], ARGV[2]) > 0 then
  return '0'
end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -(keep + 1))
redis.call('EXPIRE', KEYS[1], ARGV[4])

local field = ARGV[5]
if redis.call('HEXISTS', KEYS[2], field) == 0 and redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[7]) then
  field = ARGV[6]
end
redis.call('HINCRBY', KEYS[2], field, 1)
redis.call('EXPIRE', KEYS[2], ARGV[8])
return '1'
