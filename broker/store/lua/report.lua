-- report: what a health row becomes through a report; the same rule as `merge` in domain/health.py.
--
-- KEYS[1] rows hash   KEYS[2] events stream
-- ARGV[1] subject     ARGV[2] state           ARGV[3] seconds it lasts   ARGV[4] until, told by the vendor ('': not told)
-- ARGV[5] because     ARGV[6] evidence        ARGV[7] version the reporter saw
-- ARGV[8] most seconds a block may last       ARGV[9] about how many events to keep
--
-- Answers {row, now, changed '1' | '0'}. Times are seconds of this server's clock, with all digits of a double.

local SEVERITY = {healthy = 0, suspect = 1, cooling = 2, exhausted = 3, revoked = 4, paused = 5}

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local subject, state = ARGV[1], ARGV[2]
local told = ARGV[4] ~= ''
local stored = redis.call('HGET', KEYS[1], subject)
local row = stored and cjson.decode(stored)

-- by hand, because cjson would cut times to 14 digits
local function encode(state, ends, since, because, evidence, told, version)
  return string.format(
    '{"subject":%s,"state":%s,"until":%.17g,"since":%.17g,"because":%s,"evidence":%s,"told":%s,"version":%d}',
    cjson.encode(subject), cjson.encode(state), ends, since, cjson.encode(because), cjson.encode(evidence),
    told and 'true' or 'false', version)
end

local function stays()
  return {stored or encode('healthy', 0, 0, '', '', false, 0), string.format('%.17g', now), '0'}
end

local function ends_at()
  if state == 'paused' then
    return told and tonumber(ARGV[4]) or 0
  end
  local wanted = told and tonumber(ARGV[4]) or now + tonumber(ARGV[3])
  return math.min(math.max(wanted, now), now + tonumber(ARGV[8]))
end

local function becomes(ends, evidence, by_vendor)
  local version = (row and row.version or 0) + 1
  local encoded = encode(state, ends, now, ARGV[5], evidence, by_vendor, version)
  redis.call('HSET', KEYS[1], subject, encoded)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[9], '*', 'subject', subject, 'from', row and row.state or 'healthy',
    'state', state, 'until', string.format('%.17g', ends), 'because', ARGV[5], 'evidence', evidence,
    'version', tostring(version))
  return {encoded, string.format('%.17g', now), '1'}
end

if state == 'healthy' then
  if not row or row.state == 'paused' or row.version ~= tonumber(ARGV[7]) then
    return stays()
  end
  return becomes(0, '', false)
end

local ends = ends_at()
local row_ends = row and row['until']
if row and (row_ends == 0 or now < row_ends) then
  if SEVERITY[row.state] > SEVERITY[state] then
    return stays()
  end
  if row.state == state and (row_ends == 0 or (ends > 0 and row_ends >= ends)) then
    return stays()
  end
end
-- a time that had to be cut is no longer the vendor's own
return becomes(ends, ARGV[6], told and ends == tonumber(ARGV[4]))
