--- KS_EXPIRE: answer TIMEDOUT for jobs whose deadline has passed, wherever they are.
-- ARGV[1] queue          the word for it (node.queue)
-- ARGV[2..] id           entries to look at
-- Returns: how many were answered
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

local function KS_EXPIRE(_, ARGV)
  if not jobs.is_queue(ARGV[1] or '') then
    raise('BADARG', 'KS_EXPIRE is called by executors only')
  end
  local own, stream, device = node.queue(ARGV[1])
  local now = node.now_ms()
  local answered = 0
  for i = 2, #ARGV do
    local id = ARGV[i]
    local fields = jobs.is_id(id) and jobs.entry(stream, id)
    local header = fields and jobs.header(fields, id)
    local deadline = header and header[jobs.DEADLINE] or 0
    if deadline > 0 and now >= deadline then
      jobs.abandon(own, device, id, header, "TIMEDOUT model '" .. tostring(header[jobs.KEY]) .. '@' .. tostring(header[jobs.VERSION])
        .. "' did not answer before the deadline")
      answered = answered + 1
    end
  end
  return answered
end
