// The server's API: jobs, their events and their results.

let key = sessionStorage.getItem("key") ?? "";

export class Refusal extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export function useKey(text) {
  key = text;
  sessionStorage.setItem("key", text);
}

async function ask(address, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let answer;
  try {
    answer = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer: is it still running?");
  }
  if (answer.ok) return answer;
  let sentence = `The server answers ${answer.status}.`;
  try {
    sentence = (await answer.json()).error ?? sentence;
  } catch {
    // a proxy's own page
  }
  throw new Refusal(answer.status, sentence);
}

export async function checkKey() {
  await ask("/v1/models");
}

export async function newJob(file, queries, signal) {
  const form = new FormData();
  form.append("recording", file);
  for (const query of queries) form.append("query", query);
  return (await ask("/v1/jobs", { method: "POST", body: form, signal })).json();
}

export async function getJob(id) {
  return (await ask(`/v1/jobs/${encodeURIComponent(id)}`)).json();
}

export async function deleteJob(id) {
  await ask(`/v1/jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
}

export async function bytesOf(address, signal) {
  return (await ask(address, { signal })).arrayBuffer();
}

// Jobs as they change. EventSource would take no key.
export async function* jobEvents(id, signal) {
  const answer = await ask(`/v1/jobs/${encodeURIComponent(id)}/events`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}
