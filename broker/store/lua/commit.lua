-- commit: appends one turn to the transcript of a session; writing it twice changes nothing.
--
-- KEYS[1] session hash   KEYS[2] turns hash   KEYS[3] ids hash
-- ARGV[1] TTL, ms        ARGV[2] name         ARGV[3] tenant       ARGV[4] turn id
-- ARGV[5] meta           ARGV[6] meta of the same turn without items, for a transcript that is full
-- ARGV[7] bytes of the items                  ARGV[8] most bytes a transcript may have
-- ARGV[9] response id ('': none)              ARGV[10] its key in the tenant-wide index
-- ARGV[11] store '1' | '0'                    ARGV[12] boundary
-- ARGV[13] epoch and ARGV[14] nonce of the pin the turn ran under ('0': a pin no store has seen)
-- ARGV[15] credential    ARGV[16] because
-- ARGV[17] n, then n chunks of items, then the digests of all reasoning ciphertext the turn brought forth
--
-- Answers {'ok' | 'duplicate', epoch, nonce, credential, because, incremental_disabled '1' | '0', kept '1' | '0'}.

local FIRST_CHUNK = 18

local function store_items()
  local chunks = tonumber(ARGV[17])
  local bytes = tonumber(redis.call('HGET', KEYS[1], 'bytes') or '0')
  if bytes + tonumber(ARGV[7]) > tonumber(ARGV[8]) then
    redis.call('HSET', KEYS[2], ARGV[4], ARGV[6])
    return
  end
  redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
  for i = 0, chunks - 1 do
    redis.call('HSET', KEYS[2], ARGV[4] .. ':' .. i, ARGV[FIRST_CHUNK + i])
  end
  redis.call('HINCRBY', KEYS[1], 'bytes', ARGV[7])
end

local function store_ids()
  if ARGV[9] ~= '' then
    if redis.call('HSET', KEYS[3], 'r:' .. ARGV[9], ARGV[4]) == 0 then
      -- this vendor uses a response id again, so what it has stored under one is not what the session means by it
      redis.call('HSET', KEYS[1], 'reuses_ids', '1')
    end
  end
  for i = FIRST_CHUNK + tonumber(ARGV[17]), #ARGV do
    redis.call('HSET', KEYS[3], 'e:' .. ARGV[i], ARGV[12])
  end
end

local function settle_pin()
  local epoch, nonce = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'nonce'))
  if not epoch then
    redis.call('HSET', KEYS[1], 'epoch', '1', 'nonce', ARGV[14], 'credential', ARGV[15], 'because', ARGV[16])
  elseif epoch == ARGV[13] and nonce == ARGV[14] then
    -- only a turn of the present pin proves that its credential has the whole context again
    redis.call('HDEL', KEYS[1], 'incremental_disabled', 'disabled_since')
  end
end

local status = 'duplicate'
if redis.call('HEXISTS', KEYS[2], ARGV[4]) == 0 then
  status = 'ok'
  redis.call('HSET', KEYS[1], 'name', ARGV[2], 'tenant', ARGV[3], 'last_turn', ARGV[4], 'last_response', ARGV[10])
  redis.call('HSET', KEYS[1], 'b:' .. ARGV[12], '1')
  redis.call('HINCRBY', KEYS[1], 'turns', 1)
  redis.call('HDEL', KEYS[1], 'closed')
  if ARGV[11] == '1' then
    redis.call('HSET', KEYS[1], 'stored', '1')
  end
  store_items()
  store_ids()
  settle_pin()
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[1])
end

local pin = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'credential', 'because', 'incremental_disabled')
local meta = cjson.decode(redis.call('HGET', KEYS[2], ARGV[4]))
return {status, pin[1] or '', pin[2] or '', pin[3] or '', pin[4] or '', pin[5] or '0', meta.kept == false and '0' or '1'}
