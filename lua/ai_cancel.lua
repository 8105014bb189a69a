--- AI_CANCEL: take a job back, queued or running.
-- ARGV[1] ticket         the ticket that the submit returned, or that the caller chose
-- ARGV[2] job            the job id, for a ticket that the caller chose
-- Returns: 1 if the job will not write anything any more, 0 if it had ended (an unread reply on a ticket that the server chose is dropped)
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

-- For callers who may not read entries. That they may not take away those of others is not to be seen to: they can anyway.
local function cancel_unseen(own, stream, device, id, ticket)
  if jobs.take_back(own, stream, device, id) then
    return 1
  end
  if ticket == own.ticket .. device .. '/' .. id then
    redis.pcall('UNLINK', ticket)
  end
  return 0
end

local function AI_CANCEL(_, ARGV)
  local ticket, job = ARGV[1], ARGV[2]
  if not ticket or ARGV[3] or string.sub(ticket, 1, 4) ~= 'ks:{' then
    raise('BADARG', 'AI_CANCEL takes: ticket [job id]')
  end
  -- A ticket that the server chose has the tag and the job in its name.
  local tag, said = string.match(ticket, '^ks:{([^}]*)}:ticket:(.+)$')
  local word, id = string.match(job or said or '', '^(.+)/(%d+%-%d+)$')
  if not word or not jobs.is_queue(word) then
    raise('BADARG', 'give the job id that the submit returned, as in CPU/1700000000000-0')
  end
  if not job and tag ~= node.keys().tag then
    word = word .. '@' .. tag
    if not jobs.is_queue(word) then
      raise('BADARG', 'AI_CANCEL: no ticket of a node')
    end
  end
  local own, stream, device = node.queue(word)
  if not jobs.may_read(stream) then
    return cancel_unseen(own, stream, device, id, ticket)
  end
  local fields = jobs.entry(stream, id)
  local header = fields and jobs.header(fields, id)
  local mine = header and header[jobs.OP] == 'run' and (header[jobs.TICKET] == ticket or (header[jobs.TICKET] == '' and own.ticket .. device .. '/' .. id == ticket))
  if not mine then
    -- Only a list that belongs to this one job: one that the caller chose may hold replies to others.
    if ticket == own.ticket .. device .. '/' .. id then
      redis.pcall('UNLINK', ticket)
    end
    return 0
  end
  jobs.remove(stream, id)
  jobs.release(own, device, header)
  if jobs.is_event(header[jobs.CORR]) then
    events.ended(node.word(own, device) .. '/' .. id, header[jobs.DEADLINE], ticket, header[jobs.CORR],
      'CANCELLED the run was taken back (AI_CANCEL)')
  end
  return 1
end
