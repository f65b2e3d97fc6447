-- commit: appends one turn to the transcript of a session; writing it twice changes nothing.
--
-- KEYS[1] session hash   KEYS[2] turns hash   KEYS[3] ids hash
-- ARGV[1] TTL, ms        ARGV[2] name         ARGV[3] tenant       ARGV[4] turn id
-- ARGV[5] meta, a JSON object
-- ARGV[6] bytes of the items                  ARGV[7] most bytes a transcript may have
-- ARGV[8] response id ('': none)              ARGV[9] its key in the tenant-wide index
-- ARGV[10] store '1' | '0'                    ARGV[11] boundary
-- ARGV[12] epoch and ARGV[13] nonce of the pin the turn ran under ('0': a pin no store has seen)
-- ARGV[14] credential    ARGV[15] because
-- ARGV[16] n, then n chunks of items, then the digests of all reasoning ciphertext the turn brought forth
--
-- Answers {'ok' | 'duplicate', epoch, nonce, credential, because, incremental_disabled '1' | '0', kept '1' | '0'}.

local FIRST_CHUNK = 17

-- the transcript is full: what is known of the turn is kept, its items are not
local function without_items()
  local meta = cjson.decode(ARGV[5])
  meta.kept, meta.chunks, meta.size = false, nil, nil
  return cjson.encode(meta)
end

local function store_items()
  local chunks = tonumber(ARGV[16])
  local bytes = tonumber(redis.call('HGET', KEYS[1], 'bytes') or '0')
  if bytes + tonumber(ARGV[6]) > tonumber(ARGV[7]) then
    redis.call('HSET', KEYS[2], ARGV[4], without_items())
    return
  end
  redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
  for i = 0, chunks - 1 do
    redis.call('HSET', KEYS[2], ARGV[4] .. ':' .. i, ARGV[FIRST_CHUNK + i])
  end
  redis.call('HINCRBY', KEYS[1], 'bytes', ARGV[6])
end

local function store_ids()
  if ARGV[8] ~= '' then
    if redis.call('HSET', KEYS[3], 'r:' .. ARGV[8], ARGV[4]) == 0 then
      -- this vendor uses a response id again, so what it has stored under one is not what the session means by it
      redis.call('HSET', KEYS[1], 'reuses_ids', '1')
    end
  end
  for i = FIRST_CHUNK + tonumber(ARGV[16]), #ARGV do
    redis.call('HSET', KEYS[3], 'e:' .. ARGV[i], ARGV[11])
  end
end

-- a repetition clears no flag; but what it repeats may have been lost since, and whoever asks needs a pin
local function settle_pin(fresh)
  local epoch, nonce = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'nonce'))
  if not epoch then
    redis.call('HSET', KEYS[1], 'name', ARGV[2], 'tenant', ARGV[3], 'b:' .. ARGV[11], '1',
      'epoch', '1', 'nonce', ARGV[13], 'credential', ARGV[14], 'because', ARGV[15])
  elseif fresh and epoch == ARGV[12] and nonce == ARGV[13] then
    -- only a turn of the present pin proves that its credential has the whole context again
    redis.call('HDEL', KEYS[1], 'incremental_disabled', 'disabled_since')
  end
end

local status = 'duplicate'
if redis.call('HEXISTS', KEYS[2], ARGV[4]) == 0 then
  status = 'ok'
  redis.call('HSET', KEYS[1], 'name', ARGV[2], 'tenant', ARGV[3], 'last_turn', ARGV[4], 'last_response', ARGV[9])
  redis.call('HSET', KEYS[1], 'b:' .. ARGV[11], '1')
  redis.call('HINCRBY', KEYS[1], 'turns', 1)
  redis.call('HDEL', KEYS[1], 'closed')
  if ARGV[10] == '1' then
    redis.call('HSET', KEYS[1], 'stored', '1')
  end
  store_items()
  store_ids()
end
settle_pin(status == 'ok')
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[1])
end

local pin = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'credential', 'because', 'incremental_disabled')
local meta = cjson.decode(redis.call('HGET', KEYS[2], ARGV[4]))
return {status, pin[1] or '', pin[2] or '', pin[3] or '', pin[4] or '', pin[5] or '0', meta.kept == false and '0' or '1'}
