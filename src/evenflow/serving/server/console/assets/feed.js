// The stream of steps: kept for fifteen minutes, taken up again when the server has been away.

import { call, events } from "./session.js";

export const KEPT = 900;
const FIELDS = ["name", "weight", "service", "running", "waiting", "counter", "prompt", "completion", "cached", "first", "rejected", "count"];

export class Feed {
  constructor({ onSteps, onLink, onSignedOut }) {
    Object.assign(this, { onSteps, onLink, onSignedOut });
    this.steps = [];
    this.isOver = false;
  }

  stop() {
    this.isOver = true;
    this.aborter?.abort();
  }

  async run() {
    let wait = 500;
    while (!this.isOver) {
      let reason = "the server is away";
      try {
        this.aborter = new AbortController();
        const answer = await call("v1/console/steps", { signal: this.aborter.signal });
        let isFirst = true;
        await events(answer, (name, data) => {
          if (name === "steps") {
            this.take(JSON.parse(data), isFirst);
            isFirst = false;
            wait = 500;
            this.onLink("live", "");
          } else if (name === "ended") {
            const end = JSON.parse(data);
            reason = end.message;
            if (end.wants_key) this.signedOut(end.message);
          }
        });
      } catch (error) {
        if (error.status === 401 || error.status === 403) this.signedOut(error.message);
        else if (error.status) reason = error.message;
      }
      if (this.isOver) return;
      this.onLink("away", `${reason}; trying again`);
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(wait * 2, 8000);
    }
  }

  signedOut(message) {
    this.isOver = true;
    this.onSignedOut(message);
  }

  take(steps, isFirst) {
    for (const step of steps) {
      step.rows = step.clients.map((row) => Object.fromEntries(FIELDS.map((field, i) => [field, row[i]])));
      step.byName = new Map(step.rows.map((row) => [row.count > 1 ? "" : row.name, row]));
      delete step.clients;
    }
    // A restarted server counts from nothing: what was before it is not continued.
    const last = this.steps.at(-1);
    const isNew = isFirst && last && steps.length && total(steps[0]) < total(last) && total(steps.at(-1)) < total(last);
    if (isFirst && (isNew || steps.length >= this.steps.length)) this.steps = steps;
    else if (isFirst) this.steps.push(steps.at(-1));
    else this.steps.push(...steps);
    if (this.steps.length > KEPT) this.steps = this.steps.slice(-KEPT);
    this.onSteps(this.steps);
  }
}

const total = (step) => step.rows.reduce((sum, row) => sum + row.service, 0);
