--- KS_MERGE: take over what other nodes say of the models whose homes they are.
-- ARGV[1] mode           NEWER: what is newer than what this node knows; FORCE: in any case
-- ARGV[2] complete       1: afterwards the catalog has all models of the cluster
-- ARGV[3..] model        name, revision, tag, number of arguments that follow for this model; then field, record...
-- Returns: how many models were taken over; those whose home this node is never are
-- Errors: BADARG TRYAGAIN
-- Flags: allow-cross-slot-keys

local function merge_walk(argv)
  local starts, i, last = {}, 3, #argv
  while i <= last do
    local count = args.int(argv[i + 3] or '', 0, last)
    if not count or count % 2 ~= 0 or i + 3 + count > last or not args.int(argv[i + 1], 1) then
      raise('BADARG', 'KS_MERGE is called by executors only: model ' .. (#starts + 1) .. ' is malformed')
    end
    starts[#starts + 1] = i
    i = i + 4 + count
  end
  return starts
end

local function KS_MERGE(_, ARGV)
  local mode, complete = ARGV[1], ARGV[2]
  if (mode ~= 'NEWER' and mode ~= 'FORCE') or (complete ~= '0' and complete ~= '1') then
    raise('BADARG', 'KS_MERGE takes: NEWER|FORCE 0|1 (name revision tag number (field record)...)...')
  end
  local starts = merge_walk(ARGV)
  local own = node.keys()
  local applied = 0
  for _, i in ipairs(starts) do
    local name = ARGV[i]
    local known = tonumber(redis.call('ZSCORE', own.revs, name) or 0)
    if own.clustered and (mode == 'FORCE' or tonumber(ARGV[i + 1]) > known) and not node.is_local(name) then
      catalog.merge(own, name, ARGV[i + 1], ARGV[i + 2], ARGV, i + 4, tonumber(ARGV[i + 3]))
      applied = applied + 1
    end
  end
  if complete == '1' then
    redis.call('HSET', own.catalog, catalog.COMPLETE, '1')
  end
  return applied
end
