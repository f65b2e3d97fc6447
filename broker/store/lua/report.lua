-- report: what a health row becomes through a report; the rule of `merge` in domain/health.py, which says why.
--
-- KEYS[1] rows hash   KEYS[2] events stream
-- ARGV[1] the report, a JSON object: subject, state, lasting, until (null: the vendor told none), because, evidence,
--         version, at, began, at_most, soft, retracts, operator
-- ARGV[2] the rule, a JSON object: max_block, max_level, calm, first_dwell, dwell_grows, longest_dwell, max_strikes,
--         slowest_pace, fastest_pace, pace_of_block
-- ARGV[3] about how many events to keep   ARGV[4] channel on which a change is told at once
--
-- Answers {row, now, changed '1' | '0'}. Times are seconds of this server's clock, with all digits of a double.

local SEVERITY = {healthy = 0, suspect = 1, cooling = 2, exhausted = 3, revoked = 4, paused = 5}
local MAX_TIME = 1e18

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local report, rule = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local told_until = report['until']
if told_until == cjson.null then
  told_until = nil
end
local stored = redis.call('HGET', KEYS[1], report.subject)
local row = {
  subject = report.subject, state = 'healthy', ['until'] = 0, since = 0, because = '', evidence = '', told = false,
  soft = false, level = 0, strikes = 0, cleared = 0, returned = 0, pace = 0, trust = 0, version = 0,
}

-- what cannot be read is no row, and what an older row lacks has its default: else no report could ever mend it
local readable, known = pcall(cjson.decode, stored or '{}')
if readable and type(known) == 'table' and SEVERITY[known.state] then
  for key, default in pairs(row) do
    if key ~= 'subject' and type(known[key]) == type(default) then
      row[key] = known[key]
    end
  end
elseif stored then
  stored = false
end

local function blocking(state)
  return SEVERITY[state] >= 2
end

-- out for a reason of its own: a pause just ends
local function out(state)
  return blocking(state) and state ~= 'paused'
end

local function holds()
  return row['until'] == 0 or now < row['until']
end

-- by hand, because cjson would cut times to 14 digits
local function encode(r)
  return string.format(
    '{"subject":%s,"state":%s,"until":%.17g,"since":%.17g,"because":%s,"evidence":%s,"told":%s,"soft":%s,"level":%d,'
      .. '"strikes":%d,"cleared":%.17g,"returned":%.17g,"pace":%.17g,"trust":%.17g,"version":%d}',
    cjson.encode(r.subject), cjson.encode(r.state), r['until'], r.since, cjson.encode(r.because),
    cjson.encode(r.evidence), tostring(r.told), tostring(r.soft), r.level, r.strikes, r.cleared, r.returned, r.pace,
    r.trust, r.version)
end

local function stays()
  return {stored or encode(row), string.format('%.17g', now), '0'}
end

local function becomes(changes)
  local after = {}
  for key, value in pairs(row) do
    after[key] = value
  end
  for key, value in pairs(changes) do
    after[key] = value
  end
  after.since, after.version = now, row.version + 1
  local encoded = encode(after)
  redis.call('HSET', KEYS[1], report.subject, encoded)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'subject', after.subject, 'from', row.state,
    'state', after.state, 'until', string.format('%.17g', after['until']), 'since', string.format('%.17g', now),
    'because', after.because, 'evidence', after.evidence, 'told', tostring(after.told), 'soft', tostring(after.soft),
    'strikes', tostring(after.strikes), 'version', tostring(after.version))
  redis.call('PUBLISH', ARGV[4], encoded)
  return {encoded, string.format('%.17g', now), '1'}
end

local function retracted()
  if row.state ~= 'suspect' or row.evidence ~= report.evidence then
    return stays()
  end
  return becomes({state = 'healthy', ['until'] = 0, because = report.because, told = false, soft = false, level = 0})
end

local function recovered()
  if row.state == 'healthy' or row.version ~= report.version then
    return stays()
  end
  if row.state == 'paused' and not report.operator then
    return stays()
  end
  local was_out = blocking(row.state)
  local on_trial = now < row.trust and not report.operator
  if on_trial and not was_out and row['until'] >= row.trust then
    return stays()
  end
  local pace, returned = row.pace, row.returned
  if was_out then
    pace = math.min(math.max((now - row.since) * rule.pace_of_block, rule.fastest_pace), rule.slowest_pace)
    returned = now
  end
  return becomes({
    state = on_trial and 'suspect' or 'healthy', ['until'] = on_trial and row.trust or 0, because = report.because,
    evidence = report.evidence, told = false, soft = false, level = 0, cleared = now, returned = returned, pace = pace,
  })
end

local function ends_at(doublings)
  if report.state == 'paused' then
    return told_until or 0, told_until ~= nil
  end
  if told_until then
    return math.min(told_until, now + rule.max_block), told_until <= now + rule.max_block
  end
  local seen = report.at > 0 and math.min(report.at, now) or now
  local lasting = report.lasting
  if doublings > 0 then
    lasting = math.min(lasting * 2 ^ doublings, math.max(lasting, report.at_most))
  end
  return math.min(seen + lasting, now + rule.max_block), false
end

-- all pauses are a person's word, so among them only the end counts
local function weight(state, soft, told, ends)
  return {
    SEVERITY[state], soft and 0 or 1, (told or state == 'paused') and 1 or 0, ends == 0 and MAX_TIME or ends,
  }
end

-- 1, 0 or -1 as the report weighs more than the row, as much, or less
local function weighs(ends, told)
  local said, known = weight(report.state, report.soft, told, ends), weight(row.state, row.soft, row.told, row['until'])
  for i = 1, 4 do
    if said[i] ~= known[i] then
      return said[i] > known[i] and 1 or -1
    end
  end
  return 0
end

local function failed()
  if report.began > 0 and report.began < row.cleared then
    return stays()
  end
  local again = out(row.state) and not holds() and report.began >= row['until']
  local level = out(row.state) and math.min(row.level + (again and 1 or 0), rule.max_level) or 0
  local ends, told = ends_at(again and level or 0)
  if ends <= now and not (ends == 0 and report.state == 'paused') then
    return stays()
  end
  if holds() then
    if weighs(ends, told) <= 0 then
      return stays()
    end
  elseif out(row.state) and not blocking(report.state) then
    return stays()
  end
  local strikes, trust = row.strikes, row.trust
  if out(report.state) then
    if not out(row.state) then
      strikes = now - row.returned >= rule.calm and 1 or math.min(strikes + 1, rule.max_strikes)
    end
    trust = now + math.min(rule.first_dwell * rule.dwell_grows ^ math.max(strikes - 1, 0), rule.longest_dwell)
  end
  return becomes({
    state = report.state, ['until'] = ends, because = report.because, evidence = report.evidence, told = told,
    soft = report.soft, level = level, strikes = strikes, trust = trust,
  })
end

if report.state == 'healthy' then
  return report.retracts and retracted() or recovered()
end
return failed()
