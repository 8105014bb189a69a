--- AI_LIMITSET: bound what may be queued, and how often, of a model or on this node.
-- KEYS[1..] key          the model, or no key: the node
-- ARGV[1..] limits       without a key first NODE; [JOBS n] [BYTES n] [RATE n PER ms] [USERRATE n PER ms], at least one. A 0, and what
--                        is not named, is no bound; but on the node JOBS and BYTES that are not named are as they are from the start
-- Returns: OK
-- Errors: BADARG NOMODEL WRONGTYPE TRYAGAIN
-- Flags: allow-oom allow-cross-slot-keys

-- No bound is nothing: then its jobs cost no more than others.
local function limitset_model(key, found)
  models.existing_uid(key)
  found.jobs = found.jobs ~= 0 and found.jobs or nil
  found.bytes = found.bytes ~= 0 and found.bytes or nil
  local text = bounds.encode(found)
  if text then
    redis.call('HSET', key, 'limits', text)
  else
    redis.call('HDEL', key, 'limits')
  end
  catalog.rewrite(node.keys(), key)
end

local function AI_LIMITSET(KEYS, ARGV)
  local key = KEYS[1]
  if KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_LIMITSET': one model, or no key and NODE")
  end
  if key then
    limitset_model(key, bounds.parse(ARGV, 1))
    return redis.status_reply('OK')
  end
  if args.keyword(ARGV[1] or '') ~= 'NODE' then
    raise('BADARG', 'AI_LIMITSET takes a model as its key, or no key and: NODE [JOBS n] [BYTES n] [RATE n PER ms] [USERRATE n PER ms]')
  end
  local text = bounds.encode(bounds.parse(ARGV, 2))
  local own = node.keys()
  if text then
    redis.call('SET', own.limits, text)
  else
    redis.call('UNLINK', own.limits)
  end
  room.forget()
  return redis.status_reply('OK')
end
