--- lib dtypes: the table of dtypes, docs/protocol.md section 1.

local dtypes = {}

-- `pack` is the format of one element for struct; FLOAT16, 64-bit integers and STRING have none: see lib numbers.
-- `low` and `high` are decimal digits, since a Lua number would not be exact, and `low` lacks its minus sign.
dtypes.TABLE = {
  { name = 'FLOAT16', descr = '<f2', itemsize = 2, kind = 'float' },
  { name = 'FLOAT', descr = '<f4', itemsize = 4, kind = 'float', pack = '<f' },
  { name = 'DOUBLE', descr = '<f8', itemsize = 8, kind = 'float', pack = '<d' },
  { name = 'INT8', descr = '|i1', itemsize = 1, kind = 'int', pack = '<b', low = '128', high = '127' },
  { name = 'INT16', descr = '<i2', itemsize = 2, kind = 'int', pack = '<h', low = '32768', high = '32767' },
  { name = 'INT32', descr = '<i4', itemsize = 4, kind = 'int', pack = '<i4', low = '2147483648', high = '2147483647' },
  {
    name = 'INT64', descr = '<i8', itemsize = 8, kind = 'int',
    low = '9223372036854775808', high = '9223372036854775807',
  },
  { name = 'UINT8', descr = '|u1', itemsize = 1, kind = 'int', pack = '<B', low = '0', high = '255' },
  { name = 'UINT16', descr = '<u2', itemsize = 2, kind = 'int', pack = '<H', low = '0', high = '65535' },
  { name = 'UINT32', descr = '<u4', itemsize = 4, kind = 'int', pack = '<I4', low = '0', high = '4294967295' },
  { name = 'UINT64', descr = '<u8', itemsize = 8, kind = 'int', low = '0', high = '18446744073709551615' },
  { name = 'BOOL', descr = '|b1', itemsize = 1, kind = 'bool', pack = '<B', low = '0', high = '1' },
  { name = 'STRING', descr = '|S', itemsize = 0, kind = 'string' },
}

-- by_name: name in capitals -> dtype. by_descr: descr of npy -> dtype; STRING is not in it (see of_descr).
dtypes.by_name = {}
dtypes.by_descr = {}
dtypes.names = ''
for i = 1, #dtypes.TABLE do
  local dtype = dtypes.TABLE[i]
  dtypes.by_name[dtype.name] = dtype
  if dtype.kind ~= 'string' then
    dtypes.by_descr[dtype.descr] = dtype
  end
  dtypes.names = dtypes.names .. (i > 1 and ', ' or '') .. dtype.name
end
dtypes.by_descr['<i1'] = dtypes.by_name.INT8
dtypes.by_descr['<u1'] = dtypes.by_name.UINT8

--- The dtype and the bytes per element that a descr stands for, or nil.
function dtypes.of_descr(descr)
  local dtype = dtypes.by_descr[descr]
  if dtype then
    return dtype, dtype.itemsize
  end
  local width = descr:match('^|S([1-9]%d*)$')
  if width and #width <= 10 and tonumber(width) < 2147483648 then
    return dtypes.by_name.STRING, tonumber(width)
  end
  return nil
end
