--- @requires guard args node jobs
-- Dead letters: jobs that were given up, each a copy of its entry with what is known of its end. Those of a node lie in one
-- stream, whatever queue they were in.

local dead = {}

local DEAD_MAX = 1000
local KEEP_MS = 3600000 -- how long what a job has captured outlives it, for whoever sends it again
local MOST_FIELDS = 4096 -- somebody may have written an entry with more fields than unpack() takes

-- What stands before the fields of the entry itself.
local ABOUT = { id = true, reason = true, model = true, deliveries = true, executors = true }

local function title_of(header)
  return header[jobs.KEY] .. '@' .. ('%.0f'):format(header[jobs.VERSION])
end

function dead.add(own, device, id, fields, header, reason, delivered, executors)
  local entry = {
    'id', node.word(own, device) .. '/' .. id, 'reason', reason, 'model', title_of(header),
    'deliveries', ('%.0f'):format(delivered), 'executors', table.concat(executors, ' '),
  }
  for field, value in pairs(fields) do
    if #entry < MOST_FIELDS and not ABOUT[field] then
      entry[#entry + 1] = field
      entry[#entry + 1] = value
    end
  end
  redis.call('XADD', node.keys().dead, 'MAXLEN', DEAD_MAX, '*', unpack(entry))
  for _, capture in ipairs(jobs.captures(header)) do
    redis.pcall('PEXPIRE', capture, KEEP_MS, 'GT')
  end
end

-- One of them as {field = value}; nil if it is not there.
function dead.find(own, id)
  if not jobs.is_id(id) then
    raise('BADARG', "'" .. args.printable(id) .. "' is no id of a dead letter, such as 1700000000000-0: list them with AI_DEADSCAN")
  end
  return jobs.entry(own.dead, id)
end

-- The header of the job; nil where the library did not make it. Anybody who may XADD there may have written a letter.
function dead.header(fields, id)
  local header = jobs.header(fields, id)
  for _, position in ipairs(header and { jobs.INPUTS, jobs.NAMES, jobs.OUTPUTS } or {}) do
    for _, text in pairs(header[position]) do
      if type(text) ~= 'string' then
        return nil
      end
    end
  end
  return header
end

-- What there is to say of one, as a flat list; and its header.
function dead.described(id, fields)
  local header = dead.header(fields, id)
  local executors = {}
  for name in string.gmatch(fields.executors or '', '%S+') do
    executors[#executors + 1] = name
  end
  return {
    'id', id, 'job', fields.id or '', 'when', tonumber(string.match(id, '^%d+')),
    'op', header and header[jobs.OP] or '', 'model', header and title_of(header) or fields.model or '',
    'deliveries', tonumber(fields.deliveries or 0) or 0, 'executors', executors, 'reason', fields.reason or '',
  }, header
end

-- What a letter names as captures are keys to delete: only names of captures, and only where the caller may delete them himself,
-- since anybody who may XADD there could have written it.
local function may_drop(capture)
  return string.find(capture, '^ks:{[^}]*}:cap:') and redis.acl_check_cmd('UNLINK', capture)
end

function dead.drop(own, id, header)
  redis.call('XDEL', own.dead, id)
  for _, capture in ipairs(header and jobs.captures(header) or {}) do
    if may_drop(capture) then
      redis.pcall('UNLINK', capture)
    end
  end
end

-- Check the inputs of a letter that is to run again as if its caller had named them now: an executor will read and delete
-- what it names. Returns their bytes.
function dead.check_inputs(fields, header)
  local bytes, inline = 0, 0
  for _, mode in ipairs(header[jobs.INPUTS]) do
    local kind, key = string.sub(mode, 1, 1), string.sub(mode, 2)
    if mode == 'v' then
      bytes = bytes + #(fields[tostring(inline)] or raise('BADARG', 'the dead letter lacks an input: drop it'))
      inline = inline + 1
    elseif kind ~= 'r' and kind ~= 'c' then
      raise('BADARG', 'the dead letter has an input of an unknown kind: drop it')
    else
      if not redis.acl_check_cmd('GET', key) or (kind == 'c' and not may_drop(key)) then
        raise('NOPERM', "this user may not use key '" .. args.printable(key) .. "', an input of the dead letter")
      end
      bytes = bytes + redis.call('STRLEN', key)
    end
  end
  return bytes
end
