--- AI_CANCEL: take a job back, queued or running.
-- ARGV[1] ticket         the ticket that the submit returned, or that the caller chose
-- ARGV[2] job            the job id, for a ticket that the caller chose
-- Returns: 1 if the job will not write anything any more, 0 if it had ended (an unread reply on a ticket that the server chose is dropped)
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

local function AI_CANCEL(_, ARGV)
  local ticket, job = ARGV[1], ARGV[2]
  if not ticket or ARGV[3] or string.sub(ticket, 1, 4) ~= 'ks:{' then
    raise('BADARG', 'AI_CANCEL takes: ticket [job id]')
  end
  job = job or string.match(ticket, '^ks:{[^}]*}:ticket:(.+)$') or ''
  local device, id = string.match(job, '^([A-Z0-9:_.-]+)/(%d+%-%d+)$')
  if not device then
    raise('BADARG', 'give the job id that the submit returned, as in CPU/1700000000000-0')
  end
  local own = node.keys()
  local stream = own.jobs .. device
  local fields = jobs.entry(stream, id)
  local header = fields and jobs.header(fields)
  local mine = header and header[jobs.OP] == 'run' and (header[jobs.TICKET] == ticket or (header[jobs.TICKET] == '' and own.ticket .. job == ticket))
  if not mine then
    -- Only a list that belongs to this one job: one that the caller chose may hold replies to others.
    if ticket == own.ticket .. job then
      redis.pcall('UNLINK', ticket)
    end
    return 0
  end
  jobs.remove(stream, id)
  jobs.release(own, device, header)
  return 1
end
