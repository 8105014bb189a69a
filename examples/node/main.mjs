// The handwritten digits again, from Node.js: node main.mjs [url] [folder with the files of examples/digits]
// A server with the function library and an executor must be running (for instance: keyside up).

import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';
import { Keyside, KeysideError, decode, tensor } from './keyside.mjs';

const [url = 'redis://127.0.0.1:6379', folder = fileURLToPath(new URL('../digits', import.meta.url))] =
  process.argv.slice(2);
const read = (name) => readFile(join(folder, name));
const images = decode(await read('held_out_images.npy'));
const labels = decode(await read('held_out_labels.npy'));
const [total, pixels] = images.shape;

const keyside = await Keyside.connect(url);
try {
  const version = await keyside.storeModel('digits', 'ONNX', 'CPU', await read('digits.onnx'));
  console.log(`digits is version ${version}`);

  // Values in hand, one image a call, eight calls at a time on as many connections.
  let right = 0;
  for (let first = 0; first < 64; first += 8) {
    const answers = await Promise.all(
      Array.from({ length: 8 }, (_, i) => {
        const image = images.data.subarray((first + i) * pixels, (first + i + 1) * pixels);
        return keyside.predict('digits', { image: tensor('FLOAT', [1, pixels], image) });
      }),
    );
    right += answers.filter((outputs, i) => outputs.get('label').data[0] === labels.data[first + i]).length;
  }
  console.log(`one by one: ${right} of 64 are right`);

  // All in one call: too large to ride in it, so it goes through a temporary key.
  const all = await keyside.predict('digits', [images]);
  right = all.get('label').data.filter((label, i) => label === labels.data[i]).length;
  console.log(`in one call: ${right} of ${total} are right`);

  // On keys: the tensors stay in the database.
  await keyside.set('digits:images', images);
  await keyside.execute('digits', ['digits:images'], ['digits:label', 'digits:probabilities']);
  const { data } = await keyside.get('digits:label');
  right = data.filter((label, i) => label === labels.data[i]).length;
  console.log(`on keys: ${right} of ${total} are right`);

  // What does not fit is refused with a code and a reason.
  await keyside.predict('digits', [tensor('FLOAT', [1, 3], [1, 2, 3])]).catch((error) => {
    if (!(error instanceof KeysideError)) throw error;
    console.log(`three pixels: ${error.code}`);
  });
} finally {
  await keyside.close();
}
