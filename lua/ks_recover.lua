--- KS_RECOVER: take over one job of an executor that stopped extending its lease, or gave it back.
-- ARGV[1] queue          the word for it (node.queue)
-- ARGV[2] consumer       who takes it over
-- ARGV[3] lease          milliseconds without a sign of life after which a job is free
-- ARGV[4] deliveries     a job delivered that often is given up instead
-- ARGV[5] back           BACK: only one that was given back and is not known to have harmed anybody; those go first anyway
-- Returns: [deliveries, [id, [field, value...]]], an empty list if there is none
-- Errors: BADARG
-- Flags: allow-oom allow-cross-slot-keys

-- The executors that died or stalled with this job, for its dead letter; with `consumer`, one more of them. Once its
-- deadline has passed a job is nobody's to give up; a load has none.
local function recover_died(own, device, id, consumer, deadline)
  local name = own.died .. device .. '/' .. id
  if consumer then
    local expires = deadline > 0 and deadline + jobs.REPLY_GRACE_MS or node.now_ms() + jobs.GIVEN_BACK_MS
    redis.pcall('RPUSH', name, consumer)
    redis.pcall('PEXPIREAT', name, ('%.0f'):format(expires))
  end
  return name
end

local function recover_give_up(own, device, id, fields, header, delivered)
  local text = 'DEADLETTER the job was given up: ' .. delivered .. ' executors in turn died or stalled while they ran it'
  if header[jobs.OP] == 'load' then
    local key, version = header[jobs.KEY], tostring(header[jobs.VERSION])
    local found = redis.pcall('HMGET', key, 'uid', version .. ':state')
    if not found.err and found[1] and found[1] .. '-' .. version == header[jobs.MODEL] and found[2] == 'loading' then
      models.failed(node.keys(), key, version, delivered .. ' executors in turn died or stalled while they loaded it')
    end
  end
  local name = recover_died(own, device, id)
  local died = redis.pcall('LRANGE', name, '0', '-1')
  dead.add(own, device, id, fields, header, text, delivered, died.err and {} or died)
  redis.pcall('UNLINK', name)
  jobs.abandon(own, device, id, header, text, true)
end

local function recover_claim(stream, consumer, id, delivered)
  local claimed = redis.call('XCLAIM', stream, jobs.GROUP, consumer, 0, id)
  return { delivered + 1, claimed[1] }
end

local function KS_RECOVER(_, ARGV)
  local consumer, lease, limit, back = ARGV[2], args.int(ARGV[3] or ''), args.int(ARGV[4] or '', 1), ARGV[5]
  if not jobs.is_queue(ARGV[1] or '') or not lease or not limit or (back and back ~= 'BACK') then
    raise('BADARG', 'KS_RECOVER is called by executors only')
  end
  local own, stream, device = node.queue(ARGV[1])
  local idle = redis.pcall('XPENDING', stream, jobs.GROUP, 'IDLE', lease, '-', '+', 16)
  if idle.err then
    -- After a FLUSHALL there is nothing to take over; the next heartbeat makes the group again.
    return string.find(idle.err, 'NOGROUP', 1, true) and {} or error(idle, 0)
  end
  for _, pending in ipairs(idle) do
    local fields = pending[4] == 0 and jobs.entry(stream, pending[1])
    if fields and jobs.header(fields, pending[1]) then
      return recover_claim(stream, consumer, pending[1], 0)
    end
  end
  for _, pending in ipairs(back and {} or idle) do
    local id, before, unseen, delivered = pending[1], pending[2], pending[3], pending[4]
    local fields = jobs.entry(stream, id)
    local header = fields and jobs.header(fields, id)
    if not header or header[jobs.OP] == 'look' then
      jobs.remove(stream, id) -- executors look by themselves, if later
    else
      if unseen < jobs.GIVEN_BACK_MS then
        recover_died(own, device, id, before, header[jobs.DEADLINE])
      end
      if delivered < limit then
        return recover_claim(stream, consumer, id, delivered)
      end
      recover_give_up(own, device, id, fields, header, delivered)
    end
  end
  return {}
end
