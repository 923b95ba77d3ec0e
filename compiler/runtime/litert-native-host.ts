/**
 * The native LiteRT child: loads one TFLite file on the CPU by FFI and runs its signatures until the parent closes the
 * channel. Arguments: library, file, parent's process id. Requests come on descriptor 3, an answer to each goes back.
 */
import { ACCELERATORS, loadNativeModel, type NativeSignature } from './litert-c-api.ts';
import type { NativeRunRequest } from './litert-native.ts';
import { dieWithParent } from './native-api.ts';
import { readExactly, receiveRequest, sendAnswer } from './native-frames.ts';

const CHANNEL = 3;

const [library = '', file = '', parent = '0'] = process.argv.slice(2);
dieWithParent(Number(parent));
serve();
// Exit handlers of a runtime with threads are not worth waiting for; everything is written by now.
process.kill(process.pid, 'SIGKILL');

function serve(): void {
  const signatures = new Map<number, NativeSignature>();
  let model: ReturnType<typeof loadNativeModel> | undefined;
  for (;;) {
    const request = receiveRequest(CHANNEL) as unknown as NativeRunRequest | undefined;
    if (!request) return;
    const blobs = (request.blobs ?? []).map((length) => new Uint8Array(length));
    if (!blobs.every((bytes) => readExactly(CHANNEL, bytes))) return;
    try {
      model ??= loadNativeModel(library, file, ACCELERATORS.cpu);
      const { signature, inputs, outputs } = request;
      const ports = signatures.get(signature) ?? model.signature(signature, inputs, outputs);
      signatures.set(signature, ports);
      // The first request of all only loads.
      sendAnswer(CHANNEL, { result: true }, request.load ? [] : ports.run(blobs));
    } catch (error) {
      sendAnswer(CHANNEL, { error: (error as Error).message });
    }
  }
}
