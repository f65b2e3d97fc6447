-- read_events: what happened to the health rows that no recorder was given yet, and how much of it was trimmed unread.
--
-- KEYS[1] events stream   KEYS[2] recorder hash
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] how many entries at most   ARGV[4] seconds the hash lives
--
-- Answers {how many were trimmed before anybody was given them, entries}. A group that is not there is made, and is given
-- what the stream still holds. In the hash, `delivered` is how many entries of all that were ever added were given to
-- somebody or are lost, `missed` how many are lost. The server's own entries-read will not do: it may be nil, and from
-- version to version it counts differently what was trimmed.

local function read()
  return redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
end

local function failed(answer)
  return type(answer) == 'table' and answer.err
end

local got = read()
if failed(got) then
  if failed(redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')) then
    return got
  end
  redis.call('HDEL', KEYS[2], 'delivered')
  got = read()
end
local entries = got and got[1] and got[1][2] or {}

local info, stream = redis.call('XINFO', 'STREAM', KEYS[1]), {}
for i = 1, #info, 2 do
  stream[info[i]] = info[i + 1]
end
local added = tonumber(stream['entries-added'])
local trimmed = added - tonumber(stream['length'])
local known = tonumber(redis.call('HGET', KEYS[2], 'delivered') or nil)
local before = math.max(known or trimmed, trimmed)
local lost = before - (known or trimmed)
-- fewer than were asked for: there is no more
local delivered = #entries < tonumber(ARGV[3]) and added or before + #entries
if delivered ~= known then
  redis.call('HSET', KEYS[2], 'delivered', string.format('%.0f', delivered))
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
if lost > 0 then
  redis.call('HINCRBY', KEYS[2], 'missed', string.format('%.0f', lost))
end
return {lost, entries}
