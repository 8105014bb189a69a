--- KS_CATALOG: what this node says of the models whose home it is: those whose names hash to a slot of it.
-- ARGV[1] since          revision; only what changed after it. 0: everything
-- ARGV[2] count          models to look at, at most
-- ARGV[3] revs           REVS: names and revisions only
-- Returns: [node tag, 1 if the catalog is complete, the revision to go on from or an empty text if this is all,
--   [[name, revision, tag, [field, record...]]...]] by ascending revisions; a model that has gone has no records
-- Errors: BADARG TRYAGAIN
-- Flags: no-writes allow-cross-slot-keys

local function KS_CATALOG(_, ARGV)
  local since, count, word = args.int(ARGV[1] or ''), args.int(ARGV[2] or '', 1, 1000), ARGV[3]
  if not since or not count or (word and word ~= 'REVS') or ARGV[4] then
    raise('BADARG', 'KS_CATALOG takes: since count [REVS]')
  end
  local own = node.keys()
  local found = redis.call('ZRANGEBYSCORE', own.revs, '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', '0', ARGV[2])
  local further = ''
  if #found >= 2 * count then
    further = found[#found]
    -- Copies may have the revision of another model: all that have the last one belong to this page.
    local tied = redis.call('ZRANGEBYSCORE', own.revs, further, further)
    for _, name in ipairs(tied) do
      found[#found + 1] = name
      found[#found + 1] = further
    end
  end
  local list, listed = {}, {}
  for i = 1, #found, 2 do
    local name, rev = found[i], found[i + 1]
    if not listed[name] and node.is_local(name) then
      listed[name] = true
      list[#list + 1] = word and { name, rev }
        or { name, rev, redis.call('HGET', own.models, name) or '', catalog.records(own, name) }
    end
  end
  local complete = not own.clustered or redis.call('HEXISTS', own.catalog, catalog.COMPLETE) == 1
  return { own.tag, complete and 1 or 0, further, list }
end
