--- KS_PUBLISH: the end of a load: the version serves from now on, or is marked as failed.
-- KEYS[1] key            the model
-- ARGV[1] queue          the word for that of the load job (node.queue)
-- ARGV[2] consumer       the executor that loaded it
-- ARGV[3] job            entry id of the load job; -: an executor of another node was first, with state ready
-- ARGV[4] uid            of the model key
-- ARGV[5] version        number
-- ARGV[6] state          ready or failed
-- ARGV[7] digest         SHA-256 of the blob, hex; empty where it could not be read
-- ARGV[8] signature      JSON
-- ARGV[9] reason         why it failed
-- Returns: 1; 0 if the job was no longer this executor's or the version has gone
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

local function publish_blob(key, uid, version, digest)
  local got = models.get(key, version, 'chunks', 'upload')
  for i = 0, models.count(got[1]) - 1 do
    local from, to = keys.upload(key, got[2], i), keys.blob(key, uid, digest, i)
    if redis.call('EXISTS', to) == 1 then
      redis.call('PERSIST', to)
      redis.call('UNLINK', from)
    elseif redis.call('EXISTS', from) == 1 then
      redis.call('RENAME', from, to)
      redis.call('PERSIST', to)
    end
  end
  redis.call('HSET', key, version .. ':digest', digest)
  models.index(key, version)
end

local function KS_PUBLISH(KEYS, ARGV)
  local key, consumer, job, uid, version = KEYS[1], ARGV[2], ARGV[3] or '', ARGV[4], ARGV[5] or ''
  local state, digest, signature, reason = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
  local elsewhere = job == '-' and state == 'ready'
  if not key or not jobs.is_queue(ARGV[1] or '') or not (elsewhere or jobs.is_id(job)) or not args.int(version, 1) or not reason then
    raise('BADARG', 'KS_PUBLISH is called by executors only')
  end
  -- A broken signature in the catalog would break each submit.
  if state == 'ready' and not catalog.is_signature(signature) then
    raise('BADARG', 'KS_PUBLISH: no signature')
  end
  local own, stream
  if elsewhere then
    own = node.keys()
  else
    own, stream = node.queue(ARGV[1])
    if not jobs.held(stream, consumer, job, job, 1)[job] then
      return 0
    end
    jobs.remove(stream, job)
    own = node.keys() -- the catalog is that of the node, whatever tag the job was queued under
  end
  local found = redis.pcall('HMGET', key, 'uid', version .. ':state', version .. ':device', version .. ':load')
  if found.err or found[1] ~= uid or found[2] ~= 'loading' then
    return 0
  end
  if elsewhere and found[3] and found[4] and jobs.is_id(found[4]) then
    jobs.remove(own.jobs .. found[3], found[4])
  end
  if state == 'ready' then
    publish_blob(key, uid, version, digest)
    redis.call('HSET', key, version .. ':state', 'ready', version .. ':signature', signature,
      version .. ':ready', string.format('%.0f', node.now_ms()))
    local default = tonumber(redis.call('HGET', key, 'default') or 0)
    if redis.call('HGET', key, 'pinned') ~= '1' and tonumber(version) > default then
      redis.call('HSET', key, 'default', version)
    end
    catalog.update(own, key, version)
  else
    models.failed(own, key, version, reason)
  end
  return 1
end
