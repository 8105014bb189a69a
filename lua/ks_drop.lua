--- KS_DROP: take entries away that were forwarded to another node: nobody is told, and what they hold has gone with them.
-- ARGV[1] queue          the word for it (node.queue)
-- ARGV[2] consumer       the executor; what is no longer its own stays
-- ARGV[3..] id           entries
-- Returns: how many were taken away
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

local function KS_DROP(_, ARGV)
  local consumer = ARGV[2]
  if not jobs.is_queue(ARGV[1] or '') or not consumer then
    raise('BADARG', 'KS_DROP is called by executors only')
  end
  local own, stream, device = node.queue(ARGV[1])
  local count = 0
  for i = 3, #ARGV do
    local id = ARGV[i]
    if jobs.is_id(id) and jobs.held(stream, consumer, id, id, 1)[id] then
      local fields = jobs.entry(stream, id)
      local header = fields and jobs.header(fields, id)
      jobs.remove(stream, id)
      if header then
        jobs.release(own, device, header, true)
      end
      count = count + 1
    end
  end
  return count
end
