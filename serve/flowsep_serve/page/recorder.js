// Records the microphone, as a WAV, which every server reads.

import { wavOf } from "./wav.js";

// Starts; the answer stops it and gives the file.
export async function startRecording() {
  if (!navigator.mediaDevices) throw new Error("a browser gives it to https and to this machine's own pages only");
  const sound = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: sound });
  const context = new AudioContext();
  const parts = [];
  const close = async () => {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
  };
  try {
    await context.audioWorklet.addModule("/page/recorder-worklet.js");
    const worklet = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
    worklet.port.onmessage = ({ data }) => parts.push(data);
    context.createMediaStreamSource(stream).connect(worklet);
    await context.resume(); // some browsers begin with silence
  } catch (error) {
    await close(); // the microphone must not stay on
    throw error;
  }
  return async () => {
    const { sampleRate } = context;
    await close();
    const samples = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      samples.set(part, at);
      at += part.length;
    }
    if (!samples.length) throw new Error("The recording is empty: is the microphone on?");
    return new File([wavOf([samples], sampleRate)], "recording.wav", { type: "audio/wav" });
  };
}
