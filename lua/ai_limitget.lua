--- AI_LIMITGET: show the bounds of a model, or of this node.
-- KEYS[1..] key          the model, or no key: the node
-- ARGV[1..] node         without a key: NODE
-- Returns: a flat list: jobs, n, bytes, n, rate, [n, ms], userrate, [n, ms], 0 where there is no bound; of a model also queued, the jobs
--   that count now on this node, and held, their bytes, both 0 as long as it has no such bound
-- Errors: BADARG NOMODEL WRONGTYPE TRYAGAIN
-- Flags: no-writes allow-cross-slot-keys

local function AI_LIMITGET(KEYS, ARGV)
  local key = KEYS[1]
  local own = node.keys()
  if not key then
    if args.keyword(ARGV[1] or '') ~= 'NODE' or ARGV[2] then
      raise('BADARG', 'AI_LIMITGET takes a model as its key, or no key and: NODE')
    end
    return bounds.shown(room.read(own))
  end
  if KEYS[2] or ARGV[1] then
    raise('BADARG', 'AI_LIMITGET takes one model as its key, and nothing else')
  end
  local uid = models.existing_uid(key)
  local text = redis.call('HGET', key, 'limits')
  local shown = bounds.shown(text and bounds.decode(text) or {})
  local device = models.get(key, models.version(key), 'device')[1]
  local queued, held = 0, 0
  if device then
    queued, held = counted.look(counted.name(own, uid, device))
  end
  for _, value in ipairs({ 'queued', queued, 'held', held }) do
    shown[#shown + 1] = value
  end
  return shown
end
