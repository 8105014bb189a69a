--- @requires guard args keys node seal counted events
-- One entry of a job stream (docs/protocol.md section 7), from XADD to XDEL.

local jobs = {}

jobs.GROUP = 'ks'
jobs.REPLY_GRACE_MS = 10000 -- how long a reply, and what belongs to the job, outlives the deadline
jobs.COUNTED_BYTES = 4096   -- smaller jobs are bounded by their number alone
jobs.GIVEN_BACK_MS = 86400000 -- how long what an executor gave back seems to have been left alone: more than any lease

-- Positions in the header `h`.
jobs.OP, jobs.MODEL, jobs.KEY, jobs.VERSION, jobs.DEADLINE = 2, 3, 4, 5, 6
jobs.TICKET, jobs.CORR, jobs.INPUTS, jobs.NAMES, jobs.OUTPUTS, jobs.BYTES = 7, 8, 9, 10, 11, 12
jobs.MARK = 13 -- only where the job counts for its model (lib counted): the bytes

-- Put an entry into a queue: {'h', header, '0', input, ...}. The only way in, for jobs of all kinds.
function jobs.add(stream, entry)
  local size = #entry
  if entry[size - 1] == 's' then
    entry[size - 1], entry[size] = nil, nil -- of another node
    size = size - 2
  end
  if seal.secret ~= '' then
    entry[size + 1], entry[size + 2] = 's', seal.sign(entry, 2, size / 2 - 1)
  end
  return redis.call('XADD', stream, '*', unpack(entry))
end

-- Ask an executor of the device to load a version. A load has no deadline: it ends as ready or failed.
function jobs.add_load(own, key, uid, version, device)
  local header = cmsgpack.pack({ 1, 'load', uid .. '-' .. version, key, tonumber(version), 0, '', '', {}, {}, {}, 0 })
  return jobs.add(own.jobs .. device, { 'h', header })
end

-- Let an executor of the device look which queues there are now: one is used for the first time.
function jobs.add_look(own, record)
  local header = cmsgpack.pack({ 1, 'look', record.id, record.key, tonumber(record.version), 0, '', '', {}, {}, {}, 0 })
  return jobs.add(own.jobs .. record.device, { 'h', header })
end

-- What an executor may give as the name of a device, as the word for a queue (node.queue), and as the id of an entry.
function jobs.is_device(text)
  return args.is_device(text)
end

local queue_words, queue_words_count = {}, 0

function jobs.is_queue(text)
  if queue_words[text] then
    return true
  end
  local device, priority, tag = string.match(text, '^([A-Z0-9:_.-]+)(!?[HL]?)(@?[%w_-]*)$')
  if not device or #device > 32 or (priority ~= '' and not string.find(priority, '^![HL]$'))
    or (tag ~= '' and not string.find(tag, '^@[%w_-][%w_-]?[%w_-]?$')) then
    return false
  end
  if queue_words_count >= 256 then
    queue_words, queue_words_count = {}, 0
  end
  queue_words[text] = true
  queue_words_count = queue_words_count + 1
  return true
end

function jobs.is_id(text)
  return #text <= 41 and string.find(text, '^%d+%-%d+$') ~= nil
end

-- Whether this caller may read entries: who only submits may not, since they have the inputs of others.
function jobs.may_read(stream)
  return redis.acl_check_cmd('XRANGE', stream, '-', '+')
end

-- The entry as {field = value}, or nil if it is gone.
function jobs.entry(stream, id)
  local found = redis.pcall('XRANGE', stream, id, id)
  if found.err then
    if string.find(found.err, 'Invalid stream ID', 1, true) then
      return nil
    end
    error(found, 0)
  end
  if not found[1] then
    return nil
  end
  local fields = {}
  for i = 1, #found[1][2], 2 do
    fields[found[1][2][i]] = found[1][2][i + 1]
  end
  return fields
end

local HEADER = { 'number', 'string', 'string', 'string', 'number', 'number', 'string', 'string', 'table', 'table', 'table', 'number' }

-- Whether this library has signed an entry, if it signs.
local function is_signed(fields, header, id)
  if seal.secret == '' then
    return true
  end
  local values, count = { fields.h }, 0
  for _, mode in ipairs(header[jobs.INPUTS]) do
    if mode == 'v' then
      local input = fields[tostring(count)]
      if not input then
        return false
      end
      count = count + 1
      values[2 * count + 1] = input
    end
  end
  if fields.x then
    count = count + 1
    values[2 * count + 1] = fields.x
  end
  if fields.s == seal.sign(values, 1, count) then
    return true
  end
  local ms = tonumber(string.match(id, '^%d+')) or seal.since
  return ms < seal.since and node.now_ms() < seal.since + seal.TRANSITION_MS
end

-- The header of an entry as a table; nil if somebody else wrote the entry and it is not one of ours.
function jobs.header(fields, id)
  local ok, header = pcall(cmsgpack.unpack, fields.h or '')
  if not ok or type(header) ~= 'table' then
    return nil
  end
  for i, kind in ipairs(HEADER) do
    if type(header[i]) ~= kind then
      return nil
    end
  end
  local deadline, mark = header[jobs.DEADLINE], header[jobs.MARK]
  if mark ~= nil and not (type(mark) == 'number' and mark >= 0 and mark <= args.MAX_INT) then
    return nil
  end
  if not (deadline >= 0 and deadline <= args.MAX_INT and is_signed(fields, header, id)) then
    return nil
  end
  return header
end

-- The entries among first .. last that are pending for a consumer, as {id = true}; none if the queue is gone.
function jobs.held(stream, consumer, first, last, most)
  local found = redis.pcall('XPENDING', stream, jobs.GROUP, first, last, most, consumer)
  local mine = {}
  if found.err then
    if not string.find(found.err, 'NOGROUP', 1, true) then
      error(found, 0)
    end
    return mine
  end
  for _, entry in ipairs(found) do
    mine[entry[1]] = true
  end
  return mine
end

-- Whether the corr of a job may be that of a run that a trigger has started: then its ticket tells.
function jobs.is_event(corr)
  return string.byte(corr) == 91 -- [
end

-- Put a reply where the caller waits for it. A ticket that the caller spoilt with another type is the caller's loss.
-- Returns false where the ticket is on another node.
function jobs.reply(own, device, id, deadline, ticket, corr, text)
  if corr ~= '' and jobs.is_event(corr) and events.ended(node.word(own, device) .. '/' .. id, deadline, ticket, corr, text) then
    return true
  end
  if ticket == '' then
    ticket = own.ticket .. device .. '/' .. id
  end
  return jobs.push(ticket, corr, text, deadline + jobs.REPLY_GRACE_MS)
end

local function elsewhere(reply)
  return type(reply) == 'table' and reply.err and string.find(reply.err, 'non local', 1, true) ~= nil
end

-- Other replies may wait on the same list: none of them goes before its time.
local function keep_until(ticket, alone, expires)
  expires = ('%d'):format(expires)
  if alone then
    redis.call('PEXPIREAT', ticket, expires)
  else
    redis.call('PEXPIREAT', ticket, expires, 'GT')
  end
end

function jobs.push(ticket, corr, text, expires)
  if corr ~= '' then
    text = corr .. ' ' .. text
  end
  local pushed = redis.pcall('RPUSH', ticket, text)
  if type(pushed) == 'number' then
    keep_until(ticket, pushed == 1, expires)
    return true
  end
  return not elsewhere(pushed)
end

-- Replies for lists that many jobs share, gathered in `lists`, to be pushed together: they cost most of what a batch does.
function jobs.collect(lists, ticket, text, deadline)
  local list = lists[ticket]
  if not list then
    lists[ticket] = { text, deadline = deadline }
  else
    list[#list + 1] = text
    if deadline > list.deadline then
      list.deadline = deadline
    end
  end
end

-- Returns the lists that are on other nodes, {ticket = true}; nil: none.
function jobs.push_collected(lists)
  local lost
  for ticket, list in pairs(lists) do
    local length, count = 0, #list
    for from = 1, count, 1000 do
      length = redis.pcall('RPUSH', ticket, unpack(list, from, math.min(from + 999, count)))
    end
    if type(length) == 'number' then
      keep_until(ticket, length == count, list.deadline + jobs.REPLY_GRACE_MS)
    elseif elsewhere(length) then
      lost = lost or {}
      lost[ticket] = true
    end
  end
  return lost
end

-- The private keys that hold inputs of a job and of no other.
function jobs.captures(header)
  local found = {}
  for _, input in ipairs(header[jobs.INPUTS]) do
    -- Captures, and nothing else that an entry by another hand may name.
    if type(input) == 'string' and string.find(input, '^cks:{[^}]+}:cap:') then
      found[#found + 1] = string.sub(input, 2)
    end
  end
  return found
end

function jobs.release(own, device, header, keep)
  for _, capture in ipairs(keep and {} or jobs.captures(header)) do
    redis.pcall('UNLINK', capture)
  end
  local bytes = header[jobs.BYTES]
  if type(bytes) == 'number' and bytes > 0 then
    redis.pcall('DECRBY', own.bytes .. device, string.format('%.0f', bytes))
  end
  if header[jobs.MARK] then
    local uid = string.match(header[jobs.MODEL], '^(.*)%-') or ''
    counted.take(counted.name(own, uid, device), 1, header[jobs.MARK])
  end
end

-- Take back a job that this call, or one like it, has submitted, whether its entry may be read or not. Returns whether it was there,
-- and its header if that may be known.
function jobs.take_back(own, stream, device, id)
  if jobs.may_read(stream) then
    local fields = jobs.entry(stream, id)
    local header = fields and jobs.header(fields, id)
    if header then
      jobs.remove(stream, id)
      jobs.release(own, device, header)
    end
    return header ~= nil, header
  end
  local held = own.held .. device .. '/' .. id
  if jobs.remove(stream, id) == 0 then
    return false
  end
  local bytes, mark, uid = string.match(redis.call('GET', held) or '', '^(%d+) ?(%d*) ?(%w*)$')
  if bytes then
    if bytes ~= '0' then
      redis.pcall('DECRBY', own.bytes .. device, bytes)
    end
    if uid ~= '' then
      counted.take(counted.name(own, uid, device), 1, tonumber(mark))
    end
    redis.call('UNLINK', held)
  end
  return true -- a capture goes by its TTL
end

function jobs.remove(stream, id)
  redis.call('XACK', stream, jobs.GROUP, id)
  return redis.call('XDEL', stream, id)
end

-- End a job that does not run (any more): its caller gets `text`, its captures go, unless they are to be kept.
function jobs.abandon(own, device, id, header, text, keep)
  jobs.remove(own.jobs .. device, id)
  jobs.release(own, device, header, keep)
  if header[jobs.DEADLINE] > 0 then
    jobs.reply(own, device, id, header[jobs.DEADLINE], header[jobs.TICKET], header[jobs.CORR], text)
  end
end
