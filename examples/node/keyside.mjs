// A small Keyside client, written from docs/protocol.md on the ordinary `redis` package.
//
//   const keyside = await Keyside.connect('redis://127.0.0.1:6379');
//   const outputs = await keyside.predict('digits', [tensor('FLOAT', [1, 64], pixels)]);
//   outputs.get('label').data[0];   // 7n
//
// It is for one server; on a cluster connect it to the node that owns the keys' slot.

import { randomUUID } from 'node:crypto';
import { createClientPool, RESP_TYPES } from 'redis';
import { decode, encode, unpack } from './npy.mjs';

export { decode, encode, tensor } from './npy.mjs';

const INLINE = 32 * 1024; // the largest VALUE
const TEMPORARY_MS = 60_000; // for a value on its way into a call; the call takes it over
const GRACE_MS = 2000; // at its deadline a job is answered TIMEDOUT: leave that answer time to arrive

/** What the server or the executor refused; `code` is one of section 8. */
export class KeysideError extends Error {
  constructor(text) {
    super(text);
    this.name = 'KeysideError';
    this.code = text.split(' ', 1)[0];
  }
}

export class Keyside {
  #pool;

  /** `url` is redis://, rediss:// or unix:///path. A call that waits for its result holds a connection. */
  static async connect(url, { connections = 8 } = {}) {
    const address = url.startsWith('unix://') ? { socket: { path: url.slice('unix://'.length) } } : { url };
    const keyside = new Keyside();
    keyside.#pool = createClientPool(
      { ...address, RESP: 2, commandOptions: { typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer } } },
      { minimum: 1, maximum: connections },
    );
    // A lost connection is opened again by the package; the calls on it fail with its error.
    keyside.#pool.on('error', () => {});
    await keyside.#pool.connect();
    return keyside;
  }

  async close() {
    await this.#pool.close();
  }

  /** Store a tensor. */
  async set(key, value) {
    await this.#send(['SET', key, encode(value)]);
  }

  /** Read a tensor; null where there is no such key. */
  async get(key) {
    const npy = await this.#send(['GET', key]);
    return npy === null ? null : decode(npy);
  }

  /** Store a model of at most 8 MiB (larger ones: AI_MODELSTORE with UPLOAD). Gives its version number. */
  async storeModel(name, backend, device, blob) {
    return this.#send(['FCALL', 'AI_MODELSTORE', '1', name, backend, device, 'REPLY', 'VERSION', 'BLOB', blob]);
  }

  /**
   * Run a model on values in hand. `inputs`: an array, by position, or an object, by name; each is a tensor, or a
   * string, the key of one. Gives a Map from the names of the outputs to tensors, in the model's order.
   */
  async predict(target, inputs, { timeout = 30_000 } = {}) {
    const byName = !Array.isArray(inputs);
    const values = Object.values(inputs);
    const keys = new Set();
    const specs = [];
    const temporary = [];
    for (const value of values) {
      if (typeof value === 'string') {
        keys.add(value);
        specs.push('KEY', value);
        continue;
      }
      const npy = encode(value);
      if (npy.length <= INLINE) {
        specs.push('VALUE', npy);
      } else {
        const key = `tmp:${randomUUID()}`;
        temporary.push([key, npy]);
        keys.add(key);
        specs.push('OWN', key);
      }
    }
    const names = byName ? ['NAMES', String(values.length), ...Object.keys(inputs)] : [];
    const reply = await this.#run(
      ['FCALL', 'AI_PREDICT', String(keys.size), ...keys, target, 'INPUTS', String(values.length), ...specs, ...names],
      timeout,
      temporary,
    );
    const outputs = unpack(reply).get('outputs');
    for (const [name, value] of outputs) {
      outputs.set(name, decode(typeof value === 'string' ? await this.#fetch(value) : value));
    }
    return outputs;
  }

  /** Run a model on tensors in the database: keys in, keys out. */
  async execute(target, inputs, outputs, { timeout = 30_000 } = {}) {
    const keys = [...new Set([...inputs, ...outputs])];
    const lists = ['INPUTS', String(inputs.length), ...inputs, 'OUTPUTS', String(outputs.length), ...outputs];
    await this.#run(['FCALL', 'AI_MODELEXECUTE', String(keys.length), ...keys, target, ...lists], timeout, []);
  }

  /** Submit a job and wait for its reply: `OK` or a msgpack map; anything else is thrown. */
  async #run(call, timeout, temporary) {
    return this.#pool.execute(async (connection) => {
      // The SETs and the call go out together; the call takes the temporaries over unless it is refused.
      const sets = temporary.map(([key, npy]) => this.#send(['SET', key, npy, 'PX', String(TEMPORARY_MS)], connection));
      const submitted = this.#send([...call, 'TIMEOUT', String(timeout)], connection);
      let ticket;
      try {
        [ticket] = await Promise.all([submitted, ...sets]);
      } catch (error) {
        if (temporary.length) await this.#send(['UNLINK', ...temporary.map(([key]) => key)], connection);
        throw error;
      }
      const answer = await this.#send(['BLPOP', ticket, String((timeout + GRACE_MS) / 1000)], connection);
      if (answer === null) {
        await this.#send(['FCALL', 'AI_CANCEL', '0', ticket], connection);
        throw new KeysideError(`TIMEDOUT nobody answered within ${timeout + GRACE_MS} ms: is an executor running?`);
      }
      const reply = answer[1];
      if (reply[0] >= 0x80 || reply.equals(Buffer.from('OK'))) return reply;
      throw new KeysideError(reply.toString('utf8'));
    });
  }

  /** Read a large output and take it away. */
  async #fetch(key) {
    const npy = await this.#send(['GET', key]);
    if (npy === null) throw new KeysideError(`INPUTLOST the output in ${key} has expired`);
    await this.#send(['UNLINK', key]);
    return npy;
  }

  async #send(args, connection = this.#pool) {
    try {
      return await connection.sendCommand(args);
    } catch (error) {
      // Error replies begin with a code of section 8 or of the server's own; what else there is, is the connection's.
      throw /^[A-Z]+ /.test(error.message) ? new KeysideError(error.message) : error;
    }
  }
}
