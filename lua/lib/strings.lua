--- lib strings: elements of STRING tensors.
--- @requires guard args

local strings = {}

local function too_wide(count, width, limit)
  raise('TOOBIG', ('%d strings, each padded to the longest, %d bytes, are more than %d: SET a .npy file instead')
    :format(count, width, limit))
end

--- The data of count strings out of texts[first] and the following, and the bytes of each: those of the longest, at
-- least one. Raises BADVALUE, and TOOBIG where the data would have more than limit bytes. `named` as in numbers.encode.
function strings.encode(texts, first, count, limit, named)
  local width = 1
  for i = 1, count do
    local text = texts[first + i - 1]
    if text:byte(-1) == 0 then
      raise('BADVALUE', ("%s, '%s', ends in NUL, which is the padding"):format(named and named(i) or 'value ' .. i, args.printable(text)))
    end
    width = math.max(width, #text)
  end
  if count * width > limit then
    too_wide(count, width, limit)
  end
  local parts = {}
  for i = 1, count do
    local text = texts[first + i - 1]
    parts[i] = text .. ('\0'):rep(width - #text)
  end
  return table.concat(parts), width
end

--- The strings of a blob in which each is ended by a NUL; raises BADARG where there are not count of them.
function strings.split(blob, count)
  local texts, at = {}, 1
  for i = 1, count do
    local stop = blob:find('\0', at, true)
    if not stop then
      raise('BADARG', ('the blob has %d strings ended by NUL, the shape has %d'):format(i - 1, count))
    end
    texts[i] = blob:sub(at, stop - 1)
    at = stop + 1
  end
  if at <= #blob then
    raise('BADARG', ('the blob has more than the %d strings ended by NUL that the shape has'):format(count))
  end
  return texts
end

-- Text without the NULs at its end. No pattern: `%z*$` takes quadratic time where there are NULs further in.
local NULS = ('\0'):rep(64)
local function unpad(text)
  local stop = #text
  while stop >= #NULS and text:sub(stop - #NULS + 1, stop) == NULS do
    stop = stop - #NULS
  end
  while stop > 0 and text:byte(stop) == 0 do
    stop = stop - 1
  end
  return text:sub(1, stop)
end

--- The strings of the data of a tensor, without their padding.
function strings.decode(data, width)
  local texts = {}
  for i = 1, #data / width do
    texts[i] = unpad(data:sub((i - 1) * width + 1, i * width))
  end
  return texts
end

--- Strings as a blob in which each is ended by a NUL; raises BADVALUE where one has a NUL inside.
function strings.join(texts)
  for i = 1, #texts do
    if texts[i]:find('\0', 1, true) then
      raise('BADVALUE', ('string %d has a NUL inside, which ends a string in a BLOB: use VALUES or GET'):format(i))
    end
  end
  texts[#texts + 1] = ''
  return table.concat(texts, '\0')
end
