--- KS_FORWARD: queue a job that was submitted on another node, which the slot of its keys has left.
-- KEYS[1] key            one of the job's: its slot decides where the job runs; of a load, the model
-- ARGV[1] queue          the word for the queue here (node.queue)
-- ARGV[2] origin         tag/queue/entry of the job where it comes from: each is taken once
-- ARGV[3] deadline       of the job; 0: none
-- ARGV[4] ticket         of a job whose caller has named none: that is named after the entry, and is to stay what it was
-- ARGV[5..] field        fields and values of the entry
-- Returns: the id of the new entry; empty if that origin was taken before
-- Errors: BADARG TRYAGAIN
-- Flags: allow-oom allow-cross-slot-keys

local FORWARD_MS = 3600000 -- how long the origin of a job without a deadline is remembered

local function forward_entry(header, argv, ticket)
  local entry = {}
  for i = 5, #argv do
    entry[i - 4] = argv[i]
  end
  if header[jobs.OP] == 'run' and header[jobs.TICKET] == '' then
    header[jobs.TICKET] = ticket
    entry[2] = cmsgpack.pack(header)
  end
  return entry
end

local function forward_header(argv, id)
  local fields = {}
  for i = 5, #argv, 2 do
    fields[argv[i]] = argv[i + 1]
  end
  return argv[5] == 'h' and jobs.header(fields, id)
end

local function KS_FORWARD(KEYS, ARGV)
  local key, origin, deadline, ticket = KEYS[1], ARGV[2] or '', args.int(ARGV[3] or ''), ARGV[4]
  local from = string.match(origin, '^[%w_-]+/[A-Z0-9:_.!-]+/(%d+%-%d+)$')
  if not key or not jobs.is_queue(ARGV[1] or '') or not from or #origin > 96 or not deadline or not ticket or #ticket > 1024
    or #ARGV % 2 ~= 0 or #ARGV > 4096 then
    raise('BADARG', 'KS_FORWARD is called by executors only')
  end
  local header = forward_header(ARGV, from)
  if not header then
    raise('BADARG', 'KS_FORWARD: the entry is none of ours')
  end
  local own, stream, device = node.queue(ARGV[1])
  local mark = keys.forwarded(key, origin)
  if redis.call('EXISTS', mark) == 1 then
    return ''
  end
  local expires = deadline > 0 and deadline + jobs.REPLY_GRACE_MS or node.now_ms() + FORWARD_MS
  local bytes, op, model, version = header[jobs.BYTES], header[jobs.OP], header[jobs.MODEL], header[jobs.VERSION]
  local id = jobs.add(stream, forward_entry(header, ARGV, ticket))
  redis.call('SET', mark, '1', 'PXAT', ('%.0f'):format(expires))
  if bytes > 0 then
    redis.call('INCRBY', own.bytes .. device, ('%.0f'):format(bytes))
  end
  if header[jobs.MARK] then
    counted.add(counted.name(own, string.match(model, '^(.*)%-') or '', device), header[jobs.MARK], expires)
  end
  if op == 'load' then
    version = ('%.0f'):format(version)
    local found = redis.pcall('HMGET', key, 'uid', version .. ':state')
    if not found.err and found[1] and found[2] == 'loading' and found[1] .. '-' .. version == model then
      redis.call('HSET', key, version .. ':load', id)
    end
  end
  return id
end
