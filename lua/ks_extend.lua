--- KS_EXTEND: renew the lease of the jobs that an executor still holds.
-- ARGV[1] queue          the word for it (node.queue)
-- ARGV[2] consumer       the executor
-- ARGV[3..] id           the jobs that it works on
-- Returns: the ids that are still its own
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

local function KS_EXTEND(_, ARGV)
  local consumer = ARGV[2]
  if not jobs.is_queue(ARGV[1] or '') or not consumer then
    raise('BADARG', 'KS_EXTEND is called by executors only')
  end
  local _, stream = node.queue(ARGV[1])
  local kept = {}
  for i = 3, #ARGV do
    local id = ARGV[i]
    -- XCLAIM alone would steal back what another has taken over.
    if jobs.is_id(id) and jobs.held(stream, consumer, id, id, 1)[id] then
      redis.call('XCLAIM', stream, jobs.GROUP, consumer, 0, id, 'JUSTID')
      kept[#kept + 1] = id
    end
  end
  return kept
end
