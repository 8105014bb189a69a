--- @requires args guard
-- What AI_LIMITSET sets, as JSON text: {"jobs":n,"bytes":n,"rate":[n,ms],"userrate":[n,ms]}, each only where it is set.

local bounds = {}

bounds.MAX_PER_MS = 86400000

local function is_count(value)
  return type(value) == 'number' and value >= 0 and value <= args.MAX_INT and value % 1 == 0
end

local function is_rate(value)
  return value == nil or (type(value) == 'table' and is_count(value[1]) and value[1] >= 1
    and is_count(value[2]) and value[2] >= 1 and value[2] <= bounds.MAX_PER_MS)
end

-- Whether a table from JSON is one of ours; then it also gets `counted` and `rated`: is there a bound, a rate in it.
function bounds.check(found)
  if type(found) ~= 'table' or not (found.jobs == nil or is_count(found.jobs)) or not (found.bytes == nil or is_count(found.bytes))
    or not is_rate(found.rate) or not is_rate(found.userrate) then
    return false
  end
  found.counted = (found.jobs or found.bytes) ~= nil
  found.rated = (found.rate or found.userrate) ~= nil
  return true
end

-- The table that a text stands for; nil where it is none of ours.
function bounds.decode(text)
  local ok, found = pcall(cjson.decode, text)
  return ok and bounds.check(found) and found or nil
end

local function number(n)
  return ('%.0f'):format(n)
end

-- The text of it; nil where nothing is bounded.
function bounds.encode(found)
  local parts = {}
  for _, word in ipairs({ 'jobs', 'bytes' }) do
    if found[word] then
      parts[#parts + 1] = '"' .. word .. '":' .. number(found[word])
    end
  end
  for _, word in ipairs({ 'rate', 'userrate' }) do
    if found[word] then
      parts[#parts + 1] = '"' .. word .. '":[' .. number(found[word][1]) .. ',' .. number(found[word][2]) .. ']'
    end
  end
  return parts[1] and '{' .. table.concat(parts, ',') .. '}'
end

local USAGE = '[JOBS n] [BYTES n] [RATE n PER ms] [USERRATE n PER ms], at least one of them; 0: no bound'
local WORDS = { JOBS = 'jobs', BYTES = 'bytes', RATE = 'rate', USERRATE = 'userrate' }

-- Read the words from position i on; a 0 stays in `jobs` and `bytes`, for whom that is not the same as nothing.
function bounds.parse(argv, i)
  local found, named = {}, {}
  if not argv[i] then
    raise('BADARG', 'AI_LIMITSET takes: ' .. USAGE)
  end
  while argv[i] do
    local word = args.keyword(argv[i])
    local field, count = WORDS[word], args.int(argv[i + 1] or '')
    if not field then
      raise('BADARG', "AI_LIMITSET takes " .. USAGE .. ": got '" .. args.printable(argv[i]) .. "'")
    elseif named[field] then
      raise('BADARG', 'AI_LIMITSET: ' .. word .. ' stands there twice')
    elseif not count then
      raise('BADARG', 'Invalid value for ' .. word .. ': a whole number, 0: no bound')
    end
    named[field] = true
    i = i + 2
    if field == 'jobs' or field == 'bytes' then
      found[field] = count
    else
      local per = args.keyword(argv[i] or '') == 'PER'
      local ms = per and args.int(argv[i + 1] or '', 1, bounds.MAX_PER_MS)
      if (per and not ms) or (count > 0 and not per) then
        raise('BADARG', word .. ' n PER ms: milliseconds, 1 to ' .. bounds.MAX_PER_MS)
      end
      i = per and i + 2 or i
      found[field] = count > 0 and { count, ms } or nil
    end
  end
  return found
end

-- What AI_LIMITGET tells: a flat list.
function bounds.shown(found)
  local rate, userrate = found.rate or { 0, 0 }, found.userrate or { 0, 0 }
  return { 'jobs', found.jobs or 0, 'bytes', found.bytes or 0, 'rate', { rate[1], rate[2] }, 'userrate', { userrate[1], userrate[2] } }
end
