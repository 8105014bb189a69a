--- AI_DEADGET: show a dead letter of this node: a job that was given up.
-- ARGV[1] id             of the letter, as AI_DEADSCAN lists it
-- Returns: nil if there is none; else what AI_DEADSCAN says of it, and: deadline, in ms, 0 for a load; ticket, of its caller; inputs,
--   [[VALUE, npy] | [CAPTURE, key, 1 if that is still there] | [REF, key, 1 if that is there]...]; outputs, [key...]
-- Errors: BADARG TRYAGAIN
-- Flags: no-writes allow-cross-slot-keys

local DEADGET_MODES = { c = 'CAPTURE', r = 'REF' }

local function deadget_inputs(fields, header)
  local list, inline = {}, 0
  for n, mode in ipairs(header[jobs.INPUTS]) do
    if mode == 'v' then
      list[n] = { 'VALUE', fields[tostring(inline)] or '' }
      inline = inline + 1
    else
      local key = string.sub(mode, 2)
      local there = redis.pcall('EXISTS', key) -- an error: it is not on this node
      list[n] = { DEADGET_MODES[string.sub(mode, 1, 1)] or '', key, there == 1 and 1 or 0 }
    end
  end
  return list
end

local function AI_DEADGET(KEYS, ARGV)
  if KEYS[1] or not ARGV[1] or ARGV[2] then
    raise('BADARG', 'AI_DEADGET takes no keys, and: id')
  end
  local fields = dead.find(node.keys(), ARGV[1])
  if not fields then
    return false
  end
  local letter, header = dead.described(ARGV[1], fields)
  local more = header and {
    'deadline', header[jobs.DEADLINE], 'ticket', header[jobs.TICKET], 'inputs', deadget_inputs(fields, header),
    'outputs', header[jobs.OUTPUTS],
  } or {}
  for i = 1, #more do
    letter[#letter + 1] = more[i]
  end
  return letter
end
