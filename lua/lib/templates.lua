--- @requires args
-- Text with variables {name}; {{ and }} stand for the braces themselves.

local templates = {}

-- As a list of parts, each literal text or { name }; or nil, and what is wrong. An empty text has no parts.
function templates.compile(text)
  local parts, literal, at = {}, {}, 1
  local function flush()
    local joined = table.concat(literal)
    if joined ~= '' then
      parts[#parts + 1] = joined
    end
    literal = {}
  end
  while true do
    local brace = string.find(text, '[{}]', at)
    literal[#literal + 1] = string.sub(text, at, (brace or 0) - 1)
    if not brace then
      flush()
      return parts
    end
    local letter = string.sub(text, brace, brace)
    if string.sub(text, brace + 1, brace + 1) == letter then
      literal[#literal + 1] = letter
      at = brace + 2
    else
      local name, after = string.match(text, '^{([%w_.:-]+)}()', brace)
      if not name then
        return nil, "'" .. args.printable(text) .. "' has a " .. letter .. ' that belongs to no variable such as {name}: write '
          .. letter .. letter .. ' for the character itself'
      end
      flush()
      parts[#parts + 1] = { name }
      at = after
    end
  end
end

-- Whether parts have a variable.
function templates.varies(parts)
  for _, part in ipairs(parts) do
    if type(part) == 'table' then
      return true
    end
  end
  return false
end

-- The text for these variables, or for a function that tells them; or nil, and the name of one that there is not.
function templates.fill(parts, vars)
  local texts = {}
  for n = 1, #parts do
    local part = parts[n]
    if type(part) == 'table' then
      local value = vars[part[1]]
      if not value then
        return nil, part[1]
      end
      texts[n] = value
    else
      texts[n] = part
    end
  end
  return table.concat(texts)
end
