-- claim_telling: one worker alone tells a webhook one thing, and no more in a while than the webhook is to hear.
--
-- KEYS[1] when the webhook is owed what   KEYS[2] the events it is owed   KEYS[3] whether it was told this one
-- KEYS[4] pace hash of the webhook
-- ARGV[1] id of the event, or of a summary   ARGV[2] token of the asker   ARGV[3] milliseconds a claim lasts
-- ARGV[4] how many events in one window   ARGV[5] milliseconds of a window   ARGV[6] seconds that what is done is known
--
-- Answers {'claimed', event}, {'summary', count}, {'capped'} where the event went into the summary of its window, or {'no'}
-- where it is another's or done. A claim ends by itself. A window begins with the first event after the one before; its
-- summary is owed when it is over. In the pace hash: `began` and `told` of the window, and for each summary its count.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id, done_for = ARGV[1], ARGV[6]
local function whole(number)
  return string.format('%.0f', number)
end

local function take(kind, what)
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
  redis.call('ZADD', KEYS[1], whole(now + tonumber(ARGV[3])), id)
  return {kind, what}
end

local function forget()
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
end

local function count_for_summary(began)
  local summary = 'more-' .. whole(began)
  if redis.call('HINCRBY', KEYS[4], summary, 1) == 1 then
    redis.call('ZADD', KEYS[1], whole(began + tonumber(ARGV[5])), summary)
  end
  redis.call('SET', KEYS[3], 'done', 'EX', done_for)
  forget()
  redis.call('EXPIRE', KEYS[1], done_for)
  return {'capped'}
end

local state = redis.call('GET', KEYS[3])
if state then
  if state == 'done' then
    forget()
  end
  return {'no'}
end
if not redis.call('ZSCORE', KEYS[1], id) then
  return {'no'}
end
if string.sub(id, 1, 5) == 'more-' then
  return take('summary', redis.call('HGET', KEYS[4], id) or '0')
end
local event = redis.call('HGET', KEYS[2], id)
if not event then
  forget()
  return {'no'}
end
local began = tonumber(redis.call('HGET', KEYS[4], 'began') or '0')
if now < began or now - began >= tonumber(ARGV[5]) then
  began = now
  redis.call('HSET', KEYS[4], 'began', whole(now), 'told', '0')
end
if tonumber(redis.call('HGET', KEYS[4], 'told')) >= tonumber(ARGV[4]) then
  return count_for_summary(began)
end
redis.call('HINCRBY', KEYS[4], 'told', 1)
redis.call('EXPIRE', KEYS[4], done_for)
return take('claimed', event)
