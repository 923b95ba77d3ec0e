/**
 * Keeps ONNX Runtime from reporting home, in this process and in children started after it. From 1.30 on its Linux builds
 * (npm package and wheel alike) write a device id and a database of events below the user's home, or into the working
 * folder where there is none, for upload to their maker; this variable, read when the library starts, prevents all of it.
 */
export function forbidTelemetry(): void {
  process.env.ORT_DISABLE_TELEMETRY = '1';
}
