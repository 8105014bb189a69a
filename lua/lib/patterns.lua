--- @requires args templates
-- Patterns of keys: literal text with captures {name}, which are templates too. A capture matches a run of at least one byte
-- that does not have the byte behind it in the pattern; the last one, at the end, all that is left. So there is one way at
-- most in which a key matches, found in one pass.

local patterns = {}

patterns.MAX_CAPTURES = 4
patterns.MAX_BYTES = 512
local PATTERN_STEPS = 200000 -- of a comparison

-- Parts as of templates.compile, or nil and what is wrong.
function patterns.compile(text)
  if text == '' or #text > patterns.MAX_BYTES then
    return nil, 'a pattern has 1 to ' .. patterns.MAX_BYTES .. ' bytes'
  end
  local parts, problem = templates.compile(text)
  if not parts then
    return nil, problem
  end
  local names, count, before = {}, 0, nil
  for _, part in ipairs(parts) do
    local name = type(part) == 'table' and part[1]
    if name then
      count = count + 1
      if names[name] or name == 'key' then
        return nil, "pattern '" .. args.printable(text) .. "' has two captures {" .. name .. '}' .. (name == 'key' and ': {key} is the whole key' or '')
      elseif before then
        return nil, "pattern '" .. args.printable(text) .. "' has two captures side by side: put text between them"
      end
      names[name] = true
    end
    before = name
  end
  if count > patterns.MAX_CAPTURES then
    return nil, "pattern '" .. args.printable(text) .. "' has " .. count .. ' captures, ' .. patterns.MAX_CAPTURES .. ' are the most'
  end
  return parts
end

-- What the captures are in a key, and `key` itself; nil if it does not match.
function patterns.match(parts, key)
  local vars, at = { key = key }, 1
  for n = 1, #parts do
    local part = parts[n]
    if type(part) == 'table' then
      local following = parts[n + 1]
      local stop = #key + 1
      if following then
        stop = string.find(key, string.sub(following, 1, 1), at, true)
      end
      if not stop or stop <= at then
        return nil
      end
      vars[part[1]] = string.sub(key, at, stop - 1)
      at = stop
    else
      local after = at + #part
      if string.sub(key, at, after - 1) ~= part then
        return nil
      end
      at = after
    end
  end
  return at == #key + 1 and vars or nil
end

-- The parts as a list of single bytes, and tables { not = byte } for runs.
local function pattern_steps(parts, excluded)
  local steps = {}
  for n, part in ipairs(parts) do
    if type(part) == 'table' then
      steps[#steps + 1] = { without = excluded[part[1]] }
    else
      for i = 1, #part do
        steps[#steps + 1] = string.sub(part, i, i)
      end
    end
  end
  return steps
end

-- What the byte behind each capture is.
local function pattern_excluded(parts)
  local found = {}
  for n, part in ipairs(parts) do
    if type(part) == 'table' and parts[n + 1] then
      found[part[1]] = string.sub(parts[n + 1], 1, 1)
    end
  end
  return found
end

local function pattern_meet(one, other)
  if type(one) == 'string' and type(other) == 'string' then
    return one == other
  elseif type(one) == 'string' then
    return other.without ~= one
  elseif type(other) == 'string' then
    return one.without ~= other
  end
  return true
end

-- Whether a template, filled with captures of a key that matches, may give a key that matches too; true where that takes too
-- long to find out. Both are seen as chains of states, each step one byte: who can reach the end of both?
function patterns.may_match(pattern, template)
  local excluded = pattern_excluded(pattern)
  local one, other = pattern_steps(pattern, excluded), pattern_steps(template, excluded)
  local seen, todo, count = { [0] = true }, { { 1, 1 } }, 0
  local width = #other + 2
  while #todo > 0 do
    local i, j = unpack(table.remove(todo))
    if i > #one and j > #other then
      return true
    end
    count = count + 1
    if count > PATTERN_STEPS then
      return true
    end
    if i <= #one and j <= #other and pattern_meet(one[i], other[j]) then
      -- A run may go on, or end with this byte.
      for a = (type(one[i]) == 'table' and 0 or 1), 1 do
        for b = (type(other[j]) == 'table' and 0 or 1), 1 do
          local at = (i + a) * width + j + b
          if not seen[at] then
            seen[at] = true
            todo[#todo + 1] = { i + a, j + b }
          end
        end
      end
    end
  end
  return false
end
