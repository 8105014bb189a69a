--- AI_MODELSCAN: list the models.
-- ARGV[1] cursor         0 to begin; left out: everything in one reply, at most 1,000
-- ARGV[2..] options      [COUNT n]
-- Returns: [[name, tag]...], or with a cursor [next cursor, [[name, tag]...]]
-- Errors: BADARG SCANLIMIT
-- Flags: no-writes allow-cross-slot-keys

local function modelscan_pairs(flat)
  local reply = {}
  for i = 1, #flat, 2 do
    reply[#reply + 1] = { flat[i], flat[i + 1] }
  end
  return reply
end

local function AI_MODELSCAN(_, ARGV)
  local own = node.keys()
  local cursor, word, amount = ARGV[1], ARGV[2], ARGV[3]
  if not cursor then
    local count = redis.call('HLEN', own.models)
    if count > 1000 then
      raise('SCANLIMIT', count .. ' models: call AI_MODELSCAN with a cursor, beginning with 0')
    end
    return modelscan_pairs(redis.call('HGETALL', own.models))
  end
  local count = word and args.int(amount or '', 1, 1000) or 100
  if not string.find(cursor, '^%d+$') or #cursor > 20 or (word and string.upper(word) ~= 'COUNT')
    or (word and not args.int(amount or '', 1, 1000)) or ARGV[4] then
    raise('BADARG', 'AI_MODELSCAN takes: [cursor [COUNT 1..1000]]')
  end
  local page = redis.call('HSCAN', own.models, cursor, 'COUNT', count)
  return { page[1], modelscan_pairs(page[2]) }
end
