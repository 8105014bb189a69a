// Tensors as .npy files, and the msgpack map of a reply: docs/protocol.md, sections 1 and 5.

import { endianness } from 'node:os';

if (endianness() !== 'LE') throw new Error('npy data is little-endian, and this code uses it as it lies');

// FLOAT16 has no typed array in all supported versions of Node.js: its elements are handed out as their 16 bits.
const DTYPES = {
  FLOAT16: ['<f2', Uint16Array],
  FLOAT: ['<f4', Float32Array],
  DOUBLE: ['<f8', Float64Array],
  INT8: ['|i1', Int8Array],
  INT16: ['<i2', Int16Array],
  INT32: ['<i4', Int32Array],
  INT64: ['<i8', BigInt64Array],
  UINT8: ['|u1', Uint8Array],
  UINT16: ['<u2', Uint16Array],
  UINT32: ['<u4', Uint32Array],
  UINT64: ['<u8', BigUint64Array],
  BOOL: ['|b1', Uint8Array],
};
const BY_DESCR = new Map(Object.entries(DTYPES).map(([name, [descr]]) => [descr, name]));
BY_DESCR.set('<i1', 'INT8').set('<u1', 'UINT8');

const MAGIC = Buffer.from('\x93NUMPY\x01\x00', 'latin1');
const HEADER = /^\{'descr': '([<|=>]?\w+)', 'fortran_order': (True|False), 'shape': \(((?:\d+, ?)*\d*)\),? ?\} *\n$/;
const MAX_DIMS = 32;

const count = (shape) => shape.reduce((product, dim) => product * dim, 1);

/** A tensor: `data` is a typed array (for STRING an array of strings), in C order. */
export function tensor(dtype, shape, data) {
  const elements = count(shape);
  if (!shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0) || shape.length > MAX_DIMS) {
    throw new TypeError(`not a shape: [${shape}]`);
  }
  if (data.length !== elements) throw new TypeError(`shape [${shape}] has ${elements} elements, got ${data.length}`);
  if (dtype === 'STRING') return { dtype, shape, data: [...data] };
  if (!(dtype in DTYPES)) throw new TypeError(`no dtype ${dtype}; one of ${Object.keys(DTYPES).join(' ')} STRING`);
  const Data = DTYPES[dtype][1];
  return { dtype, shape, data: data instanceof Data ? data : Data.from(data) };
}

/** Lay a tensor out as a .npy file. */
export function encode({ dtype, shape, data }) {
  let descr;
  let bytes;
  if (dtype === 'STRING') {
    const elements = data.map((text) => Buffer.from(text, 'utf8'));
    if (elements.some((element) => element.at(-1) === 0)) throw new TypeError('a STRING element ends in NUL');
    const size = Math.max(1, ...elements.map((element) => element.length));
    descr = `|S${size}`;
    bytes = Buffer.alloc(size * elements.length);
    elements.forEach((element, i) => element.copy(bytes, i * size));
  } else {
    descr = DTYPES[dtype][0];
    bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  }
  const dims = shape.length === 1 ? `${shape[0]},` : shape.join(', ');
  const header = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${dims}), }`;
  const size = Math.ceil((MAGIC.length + 2 + header.length + 1) / 64) * 64;
  const start = Buffer.alloc(size, ' ');
  MAGIC.copy(start);
  start.writeUInt16LE(size - MAGIC.length - 2, MAGIC.length);
  start.write(header, MAGIC.length + 2, 'latin1');
  start[size - 1] = 0x0a;
  return Buffer.concat([start, bytes]);
}

/** Read a .npy file; whatever is not exactly one is refused before its data is touched. */
export function decode(npy) {
  if (npy.length < 10 || !npy.subarray(0, 8).equals(MAGIC)) throw new TypeError('not a .npy file of format 1.0');
  const start = 10 + npy.readUInt16LE(8);
  const header = HEADER.exec(npy.toString('latin1', 10, start));
  if (start > npy.length || !header) throw new TypeError('the .npy header is truncated or malformed');
  const [, descr, fortran, dims] = header;
  if (fortran === 'True') throw new TypeError('the .npy file is in Fortran order');
  const shape = (dims.match(/\d+/g) ?? []).map(Number);
  if (shape.length > MAX_DIMS) throw new TypeError(`${shape.length} dimensions are too many`);

  const string = /^\|S([1-9]\d*)$/.exec(descr);
  const dtype = string ? 'STRING' : BY_DESCR.get(descr);
  if (!dtype) throw new TypeError(`the .npy file has elements of type ${descr}`);
  const Data = string ? Uint8Array : DTYPES[dtype][1];
  const size = string ? Number(string[1]) : Data.BYTES_PER_ELEMENT;
  const data = npy.subarray(start);
  if (count(shape) * size !== data.length) {
    throw new TypeError(`shape [${shape}] of ${descr} needs ${count(shape) * size} bytes, the file has ${data.length}`);
  }
  if (string) {
    const text = (i) => data.toString('utf8', i * size, (i + 1) * size).replace(/\0+$/, '');
    return { dtype, shape, data: Array.from({ length: count(shape) }, (_, i) => text(i)) };
  }
  // A copy, because a typed array needs its elements aligned and the reply is anywhere in the connection's buffer.
  return { dtype, shape, data: new Data(Uint8Array.from(data).buffer) };
}

/** Read the msgpack of a reply: maps (as Map, which keeps the order), strings, and bin as Buffer. */
export function unpack(buffer) {
  let at = 0;
  const take = (size) => {
    if (at + size > buffer.length) throw new TypeError('the reply is truncated');
    at += size;
    return buffer.subarray(at - size, at);
  };
  const number = (size) => take(size).readUIntBE(0, size);
  const text = (size) => take(size).toString('utf8');
  const map = (size) => {
    const entries = new Map();
    for (let i = 0; i < size; i++) entries.set(value(), value());
    return entries;
  };
  const value = () => {
    const kind = number(1);
    if (kind >> 4 === 0x8) return map(kind & 0x0f);
    if (kind >> 5 === 0x5) return text(kind & 0x1f);
    switch (kind) {
      case 0xc4: return take(number(1));
      case 0xc5: return take(number(2));
      case 0xc6: return take(number(4));
      case 0xd9: return text(number(1));
      case 0xda: return text(number(2));
      case 0xdb: return text(number(4));
      case 0xde: return map(number(2));
      case 0xdf: return map(number(4));
      default: throw new TypeError(`the reply holds msgpack of kind 0x${kind.toString(16)}`);
    }
  };
  const result = value();
  if (at !== buffer.length) throw new TypeError('bytes follow the reply');
  return result;
}
