--- @requires guard args
-- What only scripts have: entry points.

local scripts = {}

local MAX_ENTRY_POINTS = 1000
local MAX_RUN_LIMIT = 86400000

-- The names behind ENTRY_POINTS, and the position behind them.
function scripts.read_names(argv, i)
  local count = args.int(argv[i] or '', 1, MAX_ENTRY_POINTS)
  if not count then
    raise('BADARG', 'Non numeric entry points number provided to AI_SCRIPTSTORE: 1 to ' .. MAX_ENTRY_POINTS .. ', then the names of functions')
  end
  local names, known = {}, {}
  for n = 1, count do
    local name = argv[i + n]
    if not name then
      raise('BADARG', 'ENTRY_POINTS ' .. count .. ': only ' .. (n - 1) .. ' names follow')
    end
    if #name > 128 or not string.find(name, '^[%a_][%w_.]*$') then
      raise('BADARG', "entry point '" .. args.printable(name) .. "' is no name of a function: at most 128 letters, digits, _ and .")
    end
    if known[name] then
      raise('BADARG', "entry point '" .. name .. "' is there twice")
    end
    names[n], known[name] = name, true
  end
  return names, i + count + 1
end

-- The run limit in OPTIONS, which is all that scripts may have there; nil where it is not set.
function scripts.run_limit(text)
  local ok, given = pcall(cjson.decode, text)
  if not ok or type(given) ~= 'table' or not string.find(text, '^%s*{') then
    raise('BADARG', 'OPTIONS needs a JSON object')
  end
  for name in pairs(given) do
    if name ~= 'run_limit_ms' then
      raise('BADARG', "no option '" .. args.printable(tostring(name)) .. "' for scripts; there is run_limit_ms")
    end
  end
  local limit = given.run_limit_ms
  if limit == nil then
    return nil
  end
  if type(limit) ~= 'number' or limit < 0 or limit > MAX_RUN_LIMIT or limit % 1 ~= 0 then
    raise('BADARG', 'option run_limit_ms is a whole number of milliseconds, 0 (no limit) to ' .. MAX_RUN_LIMIT)
  end
  return ('%.0f'):format(limit)
end

-- The names in the options of a version.
function scripts.entry_points(text)
  local ok, found = pcall(cjson.decode, text or '')
  local names = ok and type(found) == 'table' and found.entry_points
  if type(names) ~= 'table' then
    return {}
  end
  local list = {}
  for n, name in ipairs(names) do
    list[n] = tostring(name)
  end
  return list
end
